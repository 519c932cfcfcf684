/** Small parts that every view is made of. */
import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { t } from "../strings.js";
import { html } from "./html.js";
import { drawer } from "./store.js";

/** @type {Record<string, string>} */
const PATHS = {
  send: "M10 16V4.5M5 9l5-5 5 5", stop: "M6 6h8v8H6z", mic: "M10 3a2.5 2.5 0 0 1 2.5 2.5v4a2.5 2.5 0 0 1-5 0v-4A2.5 2.5 0 0 1 10 3zM5 9.5a5 5 0 0 0 10 0M10 14.5V17",
  wave: "M3 9v2M6.5 6v8M10 3.5v13M13.5 6.5v7M17 9v2", plus: "M10 4v12M4 10h12", search: "M9 3.5a5.5 5.5 0 1 1 0 11 5.5 5.5 0 0 1 0-11zM13.2 13.2 17 17",
  copy: "M7.5 7.5h9v9h-9zM12.5 7.5v-4h-9v9h4", check: "M4 10.5 8 14.5 16 5.5", edit: "M12.5 4 16 7.5 7.5 16H4v-3.5zM10.5 6 14 9.5", again: "M16 10a6 6 0 1 1-1.8-4.3L16 7.5M16 3.5v4h-4",
  fork: "M6 3.5v13M6 11c0-3 8-2 8-6.5M12 6l2-2 2 2", more: "M4.5 10h.01M10 10h.01M15.5 10h.01", trash: "M4 6h12M8 6V3.5h4V6M5.5 6l.8 10.5h7.4L14.5 6", download: "M10 3.5v9M6 9l4 4 4-4M4 16.5h12",
  menu: "M3.5 6h13M3.5 10h13M3.5 14h13", close: "M5 5l10 10M15 5 5 15", down: "M5 8l5 5 5-5", panel: "M3.5 4h13v12h-13zM12 4v12", play: "M7 4.5v11l8.5-5.5z", out: "M8 4.5H4.5v11h11V12M11 4.5h4.5V9M15.5 4.5 9 11", clock: "M10 3a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM10 6v4.2l2.8 1.8",
  talk: "M3.5 4.5h13v9H9l-3.5 3v-3h-2z", agents: "M10 4a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM4 16.5c.6-3 3-4.5 6-4.5s5.4 1.5 6 4.5", sessions: "M4 5h12M4 10h12M4 15h7", usage: "M4 16.5V10M10 16.5v-13M16 16.5V7", keys: "M12.5 4a3.5 3.5 0 1 1-3 5.3L4 14.8V17h2.5v-1.8h1.8v-1.8l2-2", system: "M3 10h3l2-5 4 10 2-5h3",
  file: "M5.5 3h6L15 6.5V17H5.5zM11.5 3v3.5H15", clip: "M14.5 9.5 9.6 14.4a3 3 0 0 1-4.3-4.3l5.6-5.6a2 2 0 0 1 2.9 2.9l-5.4 5.4a1 1 0 0 1-1.5-1.4l4.5-4.5", tool: "M12.6 3.6a4 4 0 0 0-4.9 5.2L3.5 13v3.5H7l4.2-4.2a4 4 0 0 0 5.2-4.9l-2.5 2.5-2.8-.8-.8-2.8z", inbox: "M3.5 11 5.5 4h9l2 7v5h-13zM3.5 11H7l1 2h4l1-2h3.5",
  theme: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14", sound: "M4 8v4h2.5L10 15V5L6.5 8zM13 7.5a3.5 3.5 0 0 1 0 5M15 5.5a6.3 6.3 0 0 1 0 9", mute: "M4 8v4h2.5L10 15V5L6.5 8zM13.5 8l4 4M17.5 8l-4 4",
  live: "M10 8.5a1.5 1.5 0 1 1 0 3 1.5 1.5 0 0 1 0-3zM6.8 13.2a4.5 4.5 0 0 1 0-6.4M13.2 6.8a4.5 4.5 0 0 1 0 6.4M4.3 15.7a8 8 0 0 1 0-11.4M15.7 4.3a8 8 0 0 1 0 11.4", micOff: "M7.5 7v2.5a2.5 2.5 0 0 0 4.2 1.8M12.5 8.5v-3a2.5 2.5 0 0 0-4.7-1.2M5 9.5a5 5 0 0 0 8.3 3.7M15 9.5a5 5 0 0 1-.3 1.7M10 14.5V17M4 4l12 12",
};

/** @param {{ name: string, size?: number }} props */
export const Icon = ({ name, size = 20 }) => html`<svg class="icon" data-name=${name} width=${size} height=${size} viewBox="0 0 20 20" aria-hidden="true"><path d=${PATHS[name]} /></svg>`;

/** A button with a picture alone: its name is for ears and for the tooltip. @param {{ name: string, label: string, size?: number, [attribute: string]: unknown }} props */
export const IconButton = ({ name, label, size, ...rest }) => html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}><${Icon} name=${name} size=${size} /></button>`;

const HUES = [250, 50, 305, 110, 215, 15, 280, 80, 340];
const BRAND = { hue: 168, seed: 0b01010_10010_11111_10110_01000 };
/** FNV-1a with a final mix: ids that differ in one digit get pictures that differ. @param {string} text */
function hash(text) {
  let sum = 0x811c9dc5;
  for (const letter of text) sum = Math.imul(sum ^ (letter.codePointAt(0) ?? 0), 0x01000193);
  sum = Math.imul(sum ^ (sum >>> 15), 0x2c1b3c6d);
  return (sum ^ (sum >>> 13)) >>> 0;
}

/**
 * The picture of an agent: five bars of its own, like a moment of its voice. With `level` (0..1) they speak.
 * @param {{ id?: string, size?: number, level?: Signal<number>, state?: string }} props
 */
export function Mark({ id = "", size = 32, level, state = "still" }) {
  const { hue, seed } = id === "brand" ? BRAND : { hue: HUES[hash(id) % HUES.length], seed: hash(`${id}.`) };
  const loud = level?.value ?? 0;
  const bars = [0, 1, 2, 3, 4].map((index) => {
    const own = 0.24 + (((seed >>> (index * 5)) & 31) / 31) * 0.76;
    return Math.max(0.14, state === "speaking" ? (0.3 + own * 0.7) * (0.2 + loud) : own);
  });
  return html`<span class="mark" data-state=${state} style=${{ "--hue": hue, "--size": `${size}px` }} aria-hidden="true">
    <svg viewBox="0 0 32 32">${bars.map((height, index) => html`<rect key=${index} x=${5.8 + index * 4.4} y=${16 - Math.min(1, height) * 10} width="2.8" height=${Math.min(1, height) * 20} rx="1.4" />`)}</svg></span>`;
}

/** @type {Stage[]} */
export const STAGES = ["queued", "hearing", "thinking", "writing", "voicing", "speaking"];

/** Cut a turn into stages from its timings, in milliseconds from acceptance. @param {TurnLike} turn */
export function stagesOf({ timings, created_at, started_at, modality }) {
  const queued = started_at && created_at ? Math.max(0, new Date(started_at).getTime() - new Date(created_at).getTime()) : 0;
  const { stt_ms: heard, first_token_ms: first, first_sentence_ms: sentence, first_audio_ms: sound, total_ms: total } = timings ?? {};
  const spans = /** @type {Span[]} */ ([]);
  let from = 0;
  /** @param {Stage} stage @param {number} [to] */
  const until = (stage, to) => { if (to !== undefined && to > from) { spans.push({ stage, from, to }); from = to; } };
  if (queued > 20) until("queued", queued);
  if (modality === "voice") until("hearing", heard);
  until("thinking", first);
  if (sound) { until("writing", sentence); until("voicing", sound); until("speaking", total); } else until("writing", total);
  return spans;
}

/** A turn as a line: how its time was spent, in proportion. The words beside it say the same. @param {{ turn: TurnLike }} props */
export function Ribbon({ turn }) {
  const spans = stagesOf(turn);
  return html`<span class="ribbon" aria-hidden="true">${spans.map(({ stage, from, to }) => html`<i key=${stage} data-stage=${stage} style=${{ flexGrow: to - from }} title=${t.turn.stages[stage]}></i>`)}</span>`;
}

const notices = signal(/** @type {{ id: number, text: string, kind: string }[]} */ ([]));
/** Say something that needs no answer; it stays six seconds. @param {string} text */
export function notify(text, kind = "good") {
  const notice = { id: Math.random(), text, kind };
  notices.value = [...notices.value.slice(-2), notice];
  setTimeout(() => { notices.value = notices.value.filter((other) => other !== notice); }, 6000);
}
const spoken = signal("");
/** Tell screen readers, and nobody else. @param {string} text */
export const announce = (text) => { spoken.value = text; };
export const Notices = () => html`<div class="notices" role="status">${notices.value.map((n) => html`<p key=${n.id} data-kind=${n.kind}>${n.text}</p>`)}</div><div class="unseen" role="status">${spoken}</div>`;

/** Copy, also where `navigator.clipboard` is missing (plain http). Returns whether it worked. @param {string} text */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const worked = document.execCommand("copy");
    area.remove();
    if (!worked) notify(t.copyFailed, "bad");
    return worked;
  }
}

/** Where an arrow leads in a list: one further, one back, or 0 for other keys. @param {KeyboardEvent} event */
export const stepOf = (event) => (event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0);

/** Opens the side bar where there is no room for it. */
export const MenuButton = () => html`<${IconButton} name="menu" label=${t.nav.menu} class="icon-button phone-only" aria-expanded=${drawer.value} onClick=${() => { drawer.value = !drawer.value; }} />`;

/** @param {{ text: string | (() => string), label?: string, size?: number }} props */
export function CopyButton({ text, label = t.chat.copy, size }) {
  const [done, setDone] = useState(false);
  const click = async () => {
    if (!(await copy(typeof text === "function" ? text() : text))) return;
    setDone(true);
    announce(t.copied);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<${IconButton} name=${done ? "check" : "copy"} label=${label} size=${size} onClick=${click} />`;
}

/**
 * A button that opens a list of actions: arrows move, Escape closes and gives the focus back.
 * @param {{ label?: string, icon?: string, items: ({ icon: string, label: string, act: () => void, danger?: boolean } | false)[] }} props
 */
export function Menu({ label = t.more, icon = "more", items }) {
  const [open, setOpen] = useState(false);
  const box = useRef(/** @type {any} */ (null));
  /** @returns {HTMLElement[]} */
  const entries = () => [...box.current.querySelectorAll("[role=menuitem]")];
  useEffect(() => {
    if (!open) return undefined;
    entries()[0]?.focus();
    /** @param {PointerEvent} event */
    const away = (event) => { if (!box.current?.contains(event.target)) setOpen(false); };
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open]);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = stepOf(event);
    const all = entries();
    if (step) { event.preventDefault(); all[(Math.max(all.indexOf(/** @type {HTMLElement} */ (document.activeElement)), step > 0 ? -1 : 0) + step + all.length) % all.length].focus(); }
    if (event.key === "Escape" || event.key === "Tab") { setOpen(false); if (event.key === "Escape") { event.stopPropagation(); box.current.firstElementChild.focus(); } }
  };
  return html`<div class="menu" ref=${box} onKeyDown=${open ? key : undefined}>
    <${IconButton} name=${icon} label=${label} aria-haspopup="menu" aria-expanded=${open} onClick=${() => setOpen(!open)} />
    ${open && html`<div role="menu" aria-label=${label}>${items.filter((item) => item !== false).map(({ icon: picture, label: text, act, danger }) => html`
      <button type="button" role="menuitem" tabindex="-1" data-danger=${danger} onClick=${() => { setOpen(false); box.current.firstElementChild.focus(); act(); }}><${Icon} name=${picture} size=${16} />${text}</button>`)}</div>`}
  </div>`;
}

/** A native modal dialog: the browser keeps the focus inside and closes it with Escape. @param {{ title: string, onClose: () => void, children: Children, wide?: boolean }} props */
export function Dialog({ title, onClose, children, wide }) {
  const element = useRef(/** @type {any} */ (null));
  useEffect(() => { element.current.showModal(); }, []);
  return html`<dialog ref=${element} class=${wide ? "dialog wide" : "dialog"} aria-label=${title} onClose=${onClose} onClick=${(event) => event.target === element.current && element.current.close()}>
    <div class="dialog-body"><header><h2>${title}</h2><${IconButton} name="close" label=${t.close} onClick=${() => element.current.close()} /></header>${children}</div></dialog>`;
}

const question = signal(/** @type {{ title: string, text: string, action: string, resolve: (yes: boolean) => void } | null} */ (null));
/** Ask before something that cannot be undone. @param {string} title @param {string} text @param {string} action @returns {Promise<boolean>} */
export const ask = (title, text, action) => new Promise((resolve) => { question.value = { title, text, action, resolve }; });
export function Question() {
  if (!question.value) return null;
  const { title, text, action, resolve } = question.value;
  /** @param {boolean} yes */
  const answer = (yes) => { question.value = null; resolve(yes); };
  return html`<${Dialog} title=${title} onClose=${() => question.value && answer(false)}><p>${text}</p><footer>
    <button type="button" class="button" autofocus onClick=${() => answer(false)}>${t.cancel}</button><button type="button" class="button danger" onClick=${() => answer(true)}>${action}</button></footer><//>`;
}

/** One of a few values. @param {{ label: string, value: string, options: Record<string, string>, onChange: (key: string) => void }} props */
export const Choice = ({ label, value, options, onChange }) => html`<div class="choice" role="group" aria-label=${label}>${Object.entries(options).map(([key, text]) => html`
  <button type="button" key=${key} aria-pressed=${key === value} onClick=${() => onChange(key)}>${text}</button>`)}</div>`;

/**
 * A list of rows of one height, of which only those in sight exist; `onEnd` is called near the end of what is loaded.
 * @param {{ label: string, total: number, height: number, row: (index: number) => { key: string, content: Children }, onEnd?: () => void, more?: boolean }} props
 */
export function VirtualList({ label, total, height, row, onEnd, more }) {
  const box = useRef(/** @type {any} */ (null));
  const [view, setView] = useState({ from: 0, to: 30 });
  const measure = useRef(/** @type {any} */ (null));
  measure.current = () => {
    if (!box.current) return;
    const { scrollTop, clientHeight } = box.current;
    const from = Math.max(0, Math.floor(scrollTop / height) - 6);
    const to = Math.ceil((scrollTop + clientHeight) / height) + 6;
    if (from !== view.from || to !== view.to) setView({ from, to });
    if (more && to >= total - 40) onEnd?.();
  };
  useEffect(() => { const watch = new ResizeObserver(() => measure.current()); watch.observe(box.current); return () => watch.disconnect(); }, []);
  useEffect(() => measure.current(), [total, more]);
  /** @param {KeyboardEvent} event */
  const key = (event) => {
    const step = stepOf(event);
    const here = Number(document.activeElement?.closest("[data-index]")?.getAttribute("data-index"));
    if (!step || Number.isNaN(here)) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(total - 1, here + step));
    const { scrollTop, clientHeight } = box.current;
    if (next * height < scrollTop || (next + 1) * height > scrollTop + clientHeight) box.current.scrollTop = next * height - (step > 0 ? clientHeight - height : 0);
    requestAnimationFrame(() => requestAnimationFrame(() => box.current.querySelector(`[data-index="${next}"] :is(a, input)`)?.focus()));
  };
  const rows = /** @type {number[]} */ ([]);
  for (let index = view.from; index < Math.min(total, view.to); index++) rows.push(index);
  return html`<div class="virtual" ref=${box} onScroll=${() => measure.current()} onKeyDown=${key}><ol aria-label=${label} style=${{ height: `${total * height}px` }}>${rows.map((index) => {
    const { key: id, content } = row(index);
    return html`<li key=${id} data-index=${index} aria-posinset=${index + 1} aria-setsize=${more ? -1 : total} style=${{ transform: `translateY(${index * height}px)`, height: `${height}px` }}>${content}</li>`;
  })}</ol></div>`;
}

/** @param {{ icon?: string, title: string, children?: Children }} props */
export const Empty = ({ icon = "wave", title, children }) => html`<div class="empty"><${Icon} name=${icon} size=${28} /><h2>${title}</h2>${children && html`<p>${children}</p>`}</div>`;
/** @param {{ problem: Problem, retry?: () => void }} props */
export const Trouble = ({ problem, retry }) => html`<div class="trouble" role="alert"><p>${problem.message}</p>${problem.requestId && html`<code>${problem.requestId}</code>`}${retry && html`<button type="button" class="button" onClick=${retry}>${t.retry}</button>`}</div>`;
