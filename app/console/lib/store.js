/** What several views share: agents, recent sessions, preferences and drafts. */
import { computed, effect, signal } from "@preact/signals";
import { get, page, patch, post } from "./api.js";
import { firstLine } from "./format.js";
import { t } from "../strings.js";

export const agents = signal(/** @type {Agent[] | null} */ (null)); // null until they are known
export const recent = signal(/** @type {ListedSession[]} */ ([]));
export const agentById = computed(() => new Map((agents.value ?? []).map((agent) => [agent.id, agent])));

export async function loadAgents() {
  const [active, archived] = await Promise.all([get("agents", { limit: 100 }), get("agents", { limit: 100, archived: true })]);
  agents.value = [...active, ...archived];
}
export async function loadRecent() { recent.value = (await page("sessions", { order: "updated", preview: true, limit: 40 })).rows; }
/** @param {{ title?: string | null, preview?: string | null }} session */
export const titleOf = (session) => session.title || firstLine(session.preview ?? "") || t.chat.untitled;

export const waiting = signal(0);    // calls that wait for an approval
export async function loadWaiting() { if (may("turns:read")) waiting.value = (await get("tool-calls", { status: "awaiting_approval", limit: 100 })).length; }

export const me = signal(/** @type {Caller | null} */ (null));      // who is signed in
export const system = signal(/** @type {SystemState | null} */ (null));  // version, providers, limits; null where they may not be read
export async function loadMe() {
  const caller = await get("me");
  me.value = caller;
  if (caller.scopes.includes("usage:read")) system.value = await get("system").catch(() => null);
}
/** @param {Caller["scopes"][number]} scope */
export const may = (scope) => me.value?.scopes.includes(scope) ?? true;

/**
 * A value that stays in this browser; where storage is blocked it lasts as long as the page.
 * @template T @param {string} name @param {T} initial
 */
export function kept(name, initial) {
  let start = initial;
  try { start = JSON.parse(localStorage.getItem(name) ?? "null") ?? initial; } catch { /* blocked or broken */ }
  const value = signal(start);
  effect(() => { try { localStorage.setItem(name, JSON.stringify(value.value)); } catch { /* blocked or full */ } });
  return value;
}

/** Whether somebody can see the page: what is only looked at needs no connection meanwhile. */
export const visible = signal(!document.hidden);
document.addEventListener("visibilitychange", () => { visible.value = !document.hidden; });

export const drawer = signal(false); // the side bar on a phone
export const paletteOpen = signal(false);
export const helpOpen = signal(false);
export const letterKeys = kept("letter-keys", true);
export const aloud = kept("aloud", true);
export const panelOpen = kept("panel", false);
export const drafts = kept("drafts", /** @type {Record<string, string>} */ ({}));
const MOST_DRAFTS = 50;
/** @param {string} id @param {string} text */
export function keepDraft(id, text) {
  const others = Object.entries(drafts.value).filter(([other]) => other !== id).slice(1 - MOST_DRAFTS);
  drafts.value = Object.fromEntries(text ? [...others, /** @type {const} */ ([id, text])] : others);
}

/** @param {string} agentId @param {string} [firstWords] @returns {Promise<Session>} */
export async function newSession(agentId, firstWords) {
  const session = await post("sessions", { agent_id: agentId, title: firstWords ? firstLine(firstWords) : null });
  recent.value = [session, ...recent.value];
  return session;
}

/** @param {Session} session @param {string | null} title @returns {Promise<Session>} */
export async function rename(session, title) {
  const changed = await patch(`sessions/${session.id}`, { title });
  recent.value = recent.value.map((other) => (other.id === changed.id ? { ...other, ...changed } : other));
  return changed;
}

/** @param {string} path */
export const go = (path) => { location.hash = `#/${path}`; };
