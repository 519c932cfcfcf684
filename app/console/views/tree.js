/** The value of an answer in JSON, as a tree that opens and closes. */
import { html } from "../lib/html.js";
import { CopyButton } from "../lib/ui.js";
import { t } from "../strings.js";

const OPEN_LEVELS = 2;
const MOST = 200; // members of one level that are shown

/** @param {{ value: unknown }} props */
export function Tree({ value }) {
  return html`<figure class="tree"><figcaption>JSON<${CopyButton} text=${JSON.stringify(value, null, 2)} label=${t.chat.copyCode} size=${16} /></figcaption><div class="tree-body"><${Node} value=${/** @type {Html} */ (value)} level=${0} /></div></figure>`;
}

/** @param {{ name?: string, value: unknown, level: number }} props */
function Node({ name, value, level }) {
  const label = name === undefined ? null : html`<span class="tree-name">${name}</span>`;
  if (value === null || typeof value !== "object") return html`<div class="tree-leaf">${label}<span class=${`tree-${value === null ? "null" : typeof value}`}>${typeof value === "string" ? value || "\u201c\u201d" : String(value)}</span></div>`;
  const entries = Object.entries(value);
  const size = Array.isArray(value) ? t.calls.items(entries.length) : t.calls.fields(entries.length);
  const rows = html`<ul>${entries.slice(0, MOST).map(([key, each]) => html`<li key=${key}><${Node} name=${key} value=${/** @type {Html} */ (each)} level=${level + 1} /></li>`)}${entries.length > MOST && html`<li class="quiet">${t.calls.more(entries.length - MOST)}</li>`}</ul>`;
  return html`<details open=${level < OPEN_LEVELS}><summary>${label}<small>${size}</small></summary>${rows}</details>`;
}
