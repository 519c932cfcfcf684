/** One field that leads everywhere (Ctrl or Cmd K), and the list of keys (`?`). */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { page } from "../lib/api.js";
import { html } from "../lib/html.js";
import { agents, go, helpOpen, letterKeys, paletteOpen, recent, titleOf } from "../lib/store.js";
import { Dialog, Icon, Mark, stepOf } from "../lib/ui.js";
import { t } from "../strings.js";

const MOST = 8;

/** @param {{ places: [Exclude<keyof typeof t.nav, "waiting">, string, string][] }} props */
export function Palette({ places }) {
  const words = useSignal("");
  const chosen = useSignal(0);
  const found = useSignal(/** @type {ListedSession[] | null} */ (null)); // sessions that the server has found
  const list = useRef(/** @type {any} */ (null));
  const close = () => { paletteOpen.value = false; };
  useEffect(() => {
    const q = words.value.trim();
    if (q.length < 2) { found.value = null; return undefined; }
    const timer = setTimeout(() => page("sessions", { q, preview: true, limit: MOST }).then(({ rows }) => { found.value = rows; }, () => {}), 200);
    return () => clearTimeout(timer);
  }, [words.value]);
  /** @param {string} text */
  const has = (text) => text.toLowerCase().includes(words.value.trim().toLowerCase());
  /** @typedef {{ key: string, label: string, to: string, icon?: string, mark?: string }} Row */
  /** @param {ListedSession} one @returns {Row} */
  const session = (one) => ({ key: one.id, label: titleOf(one), to: `chat/${one.id}`, mark: one.agent_id });
  const groups = /** @type {[string, Row[]][]} */ ([
    [t.palette.places, places.map(([name, path, icon]) => ({ key: name, label: t.nav[name], to: path, icon })).filter(({ label }) => has(label))],
    [t.palette.agents, (agents.value ?? []).filter(({ name }) => has(name)).slice(0, MOST).map((one) => ({ key: one.id, label: one.name, to: `agents/${one.id}`, mark: one.id }))],
    [t.palette.sessions, (found.value ?? recent.value.filter((one) => has(titleOf(one)))).slice(0, MOST).map(session)],
  ]).filter(([, rows]) => rows.length);
  const all = groups.flatMap(([, rows]) => rows);
  const at = Math.min(chosen.value, all.length - 1);
  const key = (/** @type {KeyboardEvent} */ event) => {
    const step = stepOf(event);
    if (step && all.length) { event.preventDefault(); chosen.value = (at + step + all.length) % all.length; requestAnimationFrame(() => list.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" })); }
    if (event.key === "Enter" && !event.isComposing && all[at]) { event.preventDefault(); close(); go(all[at].to); }
  };
  return html`<${Dialog} title=${t.palette.title} onClose=${close}>
    <input class="input" role="combobox" aria-expanded="true" aria-controls="palette-list" aria-activedescendant=${all[at] && `palette-${all[at].key}`} aria-label=${t.palette.field} placeholder=${t.palette.field} autofocus value=${words.value} onInput=${(event) => { words.value = event.target.value; chosen.value = 0; }} onKeyDown=${key} />
    <div class="palette" id="palette-list" role="listbox" aria-label=${t.palette.title} ref=${list}>${groups.map(([title, rows]) => html`<div role="group" key=${title} aria-label=${title}><p aria-hidden="true">${title}</p>
      ${rows.map((one) => html`<div role="option" key=${one.key} id=${`palette-${one.key}`} aria-selected=${all[at] === one} onClick=${() => { close(); go(one.to); }}>${one.icon ? html`<${Icon} name=${one.icon} size=${16} />` : html`<${Mark} id=${one.mark} size=${20} />`}<span>${one.label}</span></div>`)}</div>`)}</div>
    ${!all.length && html`<p class="quiet" role="status">${t.palette.nothing}</p>`}<//>`;
}

export function Help() {
  return html`<${Dialog} title=${t.help.title} onClose=${() => { helpOpen.value = false; }}>
    <dl class="facts">${t.help.keys.map(([keys, what]) => html`<div key=${keys}><dt><kbd>${keys}</kbd></dt><dd>${what}</dd></div>`)}</dl>
    <label class="check"><input type="checkbox" checked=${letterKeys.value} onChange=${(event) => { letterKeys.value = event.target.checked; }} />${t.help.letters}</label><//>`;
}
