// Sends requests, and sends them again where that helps and does no harm.
import { ApiError, apiError, ConnectionLost, NotFound, parseProblem } from "./errors.js";

/** A stream has a heartbeat each 15 s: one that is silent for longer is dead. */
const SILENCE_MS = 40_000;
const LONGEST_PAUSE_SECONDS = 5;
const FIRST_PAUSE_SECONDS = 0.2;

export interface Call {
  readonly method: string;
  readonly path: string;
  readonly query?: Record<string, unknown>;
  readonly json?: unknown;
  readonly form?: () => FormData;
  readonly headers?: Record<string, string>;
  /** False if a second request does harm where the answer of the first was lost. */
  readonly isRepeatable?: boolean;
}

/** The caller's limit as the last response told it; `resetAt` is in seconds since 1970. */
export interface RateLimit {
  limit: number;
  remaining: number;
  resetAt: number;
  resource: string;
}

/** Return the seconds that `Retry-After` names, also as a date; `undefined` without it. */
export function retryAfter(headers: Headers): number | undefined {
  const value = headers.get("retry-after")?.trim();
  if (!value) return undefined;
  const seconds = Number(value);
  if (!Number.isNaN(seconds)) return Math.max(0, seconds);
  const moment = Date.parse(value);
  return Number.isNaN(moment) ? undefined : Math.max(0, (moment - Date.now()) / 1000);
}

/** Decides whether and when one request is sent again, for `seconds` without progress. */
export class Retries {
  #number = 0;
  #giveUpAt = 0;

  constructor(readonly seconds: number) {
    this.noteProgress();
  }

  /** Begin anew: the server answers again. */
  noteProgress(): void {
    this.#number = 0;
    this.#giveUpAt = performance.now() + this.seconds * 1000;
  }

  /** Wait before `call` is sent again. Throws `ConnectionLost`. */
  async afterLoss(call: Call, error: unknown): Promise<void> {
    const pause = this.#pause();
    if (call.isRepeatable === false || this.#isTooLong(pause)) {
      throw new ConnectionLost(`${call.method} ${call.path}: ${String(error)}`, { cause: error });
    }
    await sleep(pause);
  }

  /** Wait before `call` is sent again. Throws `ApiError` where that would not help. */
  async afterRefusal(call: Call, response: Response, body: string): Promise<void> {
    const seconds = retryAfter(response.headers);
    const error = apiError(response.status, body, seconds);
    // Without a problem document it was a proxy that answered for a server which is away.
    const isOfProxy = [502, 503, 504].includes(response.status) && !parseProblem(body);
    const isTemporary = [408, 429, 503].includes(response.status);
    if (!isTemporary && !(isOfProxy && call.isRepeatable !== false)) throw error;
    const pause = Math.max(seconds ?? 0, this.#pause());
    if (this.#isTooLong(pause)) throw error;
    await sleep(pause);
  }

  #isTooLong(pause: number): boolean {
    return performance.now() + pause * 1000 > this.#giveUpAt;
  }

  #pause(): number {
    const longest = Math.min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** this.#number++);
    return longest * (0.5 + Math.random() / 2);
  }
}

export class Transport {
  rateLimit: RateLimit | undefined;

  constructor(
    readonly baseUrl: string,
    readonly headers: Record<string, string>,
    readonly retrySeconds: number,
    readonly fetch: typeof globalThis.fetch,
  ) {}

  /** Return a whole response, and repeat the request until it is one. */
  async send(call: Call, signal?: AbortSignal): Promise<Response> {
    const retries = new Retries(this.retrySeconds);
    let wasLost = false;
    for (;;) {
      try {
        const connection = await this.open(call, retries, signal);
        const pieces: Uint8Array[] = [];
        for await (const piece of connection.pieces()) pieces.push(piece);
        const { status, headers } = connection.response;
        return new Response(status === 204 ? null : new Blob(pieces as BlobPart[]), { status, headers });
      } catch (error) {
        if (error instanceof NotFound && wasLost && call.method === "DELETE") {
          return new Response(null, { status: 204 }); // by the request whose answer was lost
        }
        if (error instanceof ApiError || signal?.aborted) throw error;
        wasLost = true;
        await retries.afterLoss(call, error);
      }
    }
  }

  /** Return a response whose body is not read yet; a refusal is waited for or thrown. */
  async open(call: Call, retries: Retries, signal?: AbortSignal): Promise<Connection> {
    for (;;) {
      const connection = await Connection.open(this, call, signal);
      const { response } = connection;
      this.rateLimit = rateLimitOf(response.headers) ?? this.rateLimit;
      if (response.status < 400) return connection;
      const decoder = new TextDecoder();
      let body = "";
      for await (const piece of connection.pieces()) body += decoder.decode(piece, { stream: true });
      await retries.afterRefusal(call, response, body);
    }
  }
}

/** One response; it fails where the server is silent for too long. */
export class Connection {
  private constructor(
    readonly response: Response,
    private readonly abort: AbortController,
    private readonly unlisten: () => void,
  ) {}

  static async open(transport: Transport, call: Call, signal?: AbortSignal): Promise<Connection> {
    const url = new URL(transport.baseUrl + call.path);
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined && value !== null) url.searchParams.set(name, String(value));
    }
    const headers: Record<string, string> = { ...transport.headers, ...call.headers };
    if (call.json !== undefined) headers["Content-Type"] = "application/json";
    const abort = new AbortController();
    const stop = () => abort.abort(signal?.reason);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    const unlisten = () => signal?.removeEventListener("abort", stop);
    try {
      const response = await timed(abort, transport.fetch(url, {
        method: call.method,
        headers,
        body: call.form ? call.form() : call.json === undefined ? null : JSON.stringify(call.json),
        signal: abort.signal,
      }));
      return new Connection(response, abort, unlisten);
    } catch (error) {
      unlisten();
      throw error;
    }
  }

  /** Yield the body as it comes; leaving the loop closes the connection. */
  async *pieces(): AsyncGenerator<Uint8Array, void> {
    const reader = this.response.body?.getReader();
    let isComplete = !reader;
    try {
      while (reader && !isComplete) {
        const { done, value } = await timed(this.abort, reader.read());
        isComplete = done;
        if (value) yield value;
      }
    } finally {
      if (!isComplete) this.abort.abort();
      this.unlisten();
    }
  }
}

async function timed<T>(abort: AbortController, promise: Promise<T>): Promise<T> {
  const timer = setTimeout(() => abort.abort(new Error("the server is silent")), SILENCE_MS);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
  }
}

function sleep(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

function rateLimitOf(headers: Headers): RateLimit | undefined {
  const [limit, remaining, resetAt] = ["limit", "remaining", "reset"].map((name) =>
    Number(headers.get(`x-ratelimit-${name}`) ?? NaN),
  );
  if (limit === undefined || remaining === undefined || resetAt === undefined) return undefined;
  if ([limit, remaining, resetAt].some(Number.isNaN)) return undefined;
  return { limit, remaining, resetAt, resource: headers.get("x-ratelimit-resource") ?? "requests" };
}
