/** Calls to the server: problem documents become `Problem`, streams become events, a turn is followed to its end. */
import { signal } from "@preact/signals";
import { t } from "../strings.js";

/** The problem that was caught; whatever else was thrown is a fault of the page, and thrown on. @param {unknown} error */
export function problemOf(error) {
  if (error instanceof Problem) return error;
  throw error;
}

export const signedOut = signal(false);
const root = new URL(".", document.baseURI);
/** @param {string} path */
export const at = (path) => new URL(path.replace(/^\//, ""), root);

/** What went wrong, in the server's words. `passes` is true where the same request may succeed later. */
export class Problem extends Error {
  /** @param {{ detail?: string, title?: string, code?: string, request_id?: string, turn_id?: string, errors?: { loc: (string | number)[], msg: string }[] }} document @param {Response} [response] */
  constructor(document, response) {
    super(document.detail || document.title || t.failed);
    this.code = document.code ?? "failed";
    this.status = response?.status ?? 0;
    this.requestId = document.request_id;
    this.fields = document.errors ?? [];
    this.retryAfter = Number(response?.headers.get("Retry-After")) || 0;
    this.passes = !this.status || (this.status === 503 && !document.turn_id && !this.code.startsWith("provider"));
  }
}

/** 128 random bits. `crypto.randomUUID` is missing on plain http, `getRandomValues` is not. */
export const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

/** @param {string} method @param {string} path @param {RequestOptions} options */
async function request(method, path, { body, query, key, stream, signal: aborted, ...extra } = {}) {
  const url = at(path);
  for (const [name, value] of Object.entries(query ?? {})) if (value !== undefined && value !== "") url.searchParams.set(name, value);
  /** @type {Record<string, string>} */
  const headers = { Accept: stream ? "text/event-stream" : "application/json", ...extra.headers };
  if (key) headers["Idempotency-Key"] = key;
  if (body && !(body instanceof FormData)) { headers["Content-Type"] = "application/json"; body = JSON.stringify(body); }
  let response;
  try {
    response = await fetch(url, { method, headers, body, signal: aborted });
  } catch (error) {
    if (aborted?.aborted) throw error;
    throw new Problem({ code: "unreachable", detail: t.unreachable });
  }
  if (response.ok) return response;
  if (response.status === 401 && !extra.headers?.Authorization) signedOut.value = true;
  throw new Problem(await response.json().catch(() => ({})), response);
}

/** @param {string} path @param {Record<string, any>} [query] @returns {Promise<any>} */
export const get = async (path, query) => (await request("GET", path, { query })).json();
/** @param {string} path @param {unknown} [body] @param {string | null} [key] @returns {Promise<any>} */
export const post = async (path, body = {}, key = newKey()) => (await request("POST", path, { body, key })).json();
/**
 * Change something from the `version` that was seen (`null`: from any); another one is `version-changed`.
 * @param {string} path @param {unknown} body @param {number | null} version @returns {Promise<any>}
 */
export const put = async (path, body, version) => (await request("PUT", path, { body, ...(version && { headers: { "If-Match": `"${version}"` } }) })).json();
/** @param {string} path @param {unknown} body @returns {Promise<any>} */
export const patch = async (path, body) => (await request("PATCH", path, { body })).json();
/** @param {string} path */
export const remove = (path) => request("DELETE", path);

/** Exchange a key for a cookie that no script can read. Throws `Problem` where the key is not known. @param {string} key */
export async function signIn(key) {
  await request("POST", "console/session", { headers: { Authorization: `Bearer ${key}` } });
  signedOut.value = false;
}

/**
 * One page of a list, the path of the next one, and of the first page how many rows there are (or NaN).
 * @param {string} path @param {Record<string, any>} [query] @returns {Promise<Rows<any>>}
 */
export async function page(path, query) {
  const response = await request("GET", path, { query });
  const next = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("Link") ?? "")?.[1];
  return { rows: await response.json(), ...(next && { next }), total: Number(response.headers.get("X-Total-Count") ?? NaN) };
}

/** @param {Response} response @returns {AsyncGenerator<StreamEvent>} */
async function* eventsOf(response) {
  const reader = /** @type {ReadableStream<BufferSource>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop() ?? "";
    for (const block of blocks) {
      /** @param {string} name */
      const field = (name) => new RegExp(`^${name}: ?(.*)$`, "m").exec(block)?.[1];
      const data = field("data");
      if (data) yield { id: Number(field("id") ?? 0), type: field("event") ?? "message", data: JSON.parse(data) };
    }
  }
}

const ENDS = ["turn.completed", "turn.failed", "turn.cancelled"];
const LONGEST_WAIT_MS = 8000;
const LOOK_MS = 2000; // how often it is asked whether somebody else has acted

/**
 * Start a turn (`path`, `body`) or join one (`turnId`) and give its events to `onEvent` until it has ended, over lost
 * connections and restarts of the server: the same `Idempotency-Key` asks again, `?after=` goes on where it broke off.
 * `onWaiting(true)` while nothing comes through. A turn that waits for an action is asked for its state as long as
 * `isWatched()`: a stream for each would use up the browser's connections. Throws `Problem` where asking again is of no use.
 */
export async function runTurn(/** @type {RunTurnOptions} */ { path, body, key = newKey(), turnId, signal: aborted, onEvent, onWaiting, isWatched = () => true }) {
  let after = 0;
  let failures = 0;
  let attempt = 1;
  let isWaiting = false;
  for (;;) {
    try {
      while (isWaiting) {
        await pause(LOOK_MS, aborted);
        if (aborted?.aborted) return;
        if (!isWatched() || document.hidden) continue;
        const turn = await get(`turns/${turnId}`);
        onWaiting(false);
        isWaiting = turn.status === "requires_action" && turn.attempt === attempt;
        if (isWaiting) onEvent({ type: "page.looked", data: turn });
      }
      const response = turnId
        ? await request("GET", `turns/${turnId}/events`, { query: { after }, stream: true, signal: aborted })
        : await request("POST", path ?? "", { body, key, stream: true, signal: aborted });
      for await (const event of eventsOf(response)) {
        failures = 0;
        onWaiting(false);
        if (event.id && event.id <= after) continue;
        after = event.id || after;
        turnId ??= event.data.turn_id;
        if (event.type === "turn.in_progress") attempt = event.data.attempt;
        isWaiting = event.type === "turn.requires_action";
        onEvent(event);
        if (ENDS.includes(event.type)) return;
      }
      if (isWaiting) continue;
    } catch (error) {
      if (aborted?.aborted) throw error;
      if (error instanceof Problem && error.code === "events-pruned") return onEvent(settled(await get(`turns/${turnId}`)));
      if (error instanceof Problem && !error.passes) throw error;
    }
    onWaiting(true);
    await pause(Math.min(LONGEST_WAIT_MS, 250 * 2 ** failures++), aborted);
  }
}

/**
 * Give the events of a session to `onEvent` until it is aborted, over lost connections: each connection begins with how
 * things are. Throws `Problem` where asking again is of no use.
 * @param {string} id @param {AbortSignal} aborted @param {(event: { type: string, data: any }) => void} onEvent
 */
export async function followSession(id, aborted, onEvent) {
  for (let failures = 0; ;) {
    try {
      const response = await request("GET", `sessions/${id}/events`, { stream: true, signal: aborted });
      for await (const event of eventsOf(response)) {
        failures = 0;
        onEvent(event);
      }
    } catch (error) {
      if (aborted.aborted) return;
      if (error instanceof Problem && !error.passes) throw error;
    }
    await pause(Math.min(LONGEST_WAIT_MS, 250 * 2 ** failures++), aborted);
    if (aborted.aborted) return;
  }
}

/** @param {Turn} turn @returns {StreamEvent} */
function settled(turn) {
  return { type: `turn.${turn.status}`, data: { message: turn.message, usage: turn.usage, timings: turn.timings, error: turn.error } };
}

/** Look at once at the turns that wait: somebody has acted on this page. */
export const lookNow = () => dispatchEvent(new Event("online"));

/** Waits, but no longer than until the browser says that the network is back. @param {number} ms @param {AbortSignal} [aborted] */
function pause(ms, aborted) {
  return new Promise((/** @type {(value?: any) => void} */ resolve) => {
    const done = () => { clearTimeout(timer); removeEventListener("online", done); resolve(); };
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    aborted?.addEventListener("abort", done, { once: true });
  });
}
