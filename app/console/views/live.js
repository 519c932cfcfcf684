/** A live conversation: captions of both sides, what the line is doing, and the few things one can do meanwhile. */
import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { firstLine, stopwatch } from "../lib/format.js";
import { html } from "../lib/html.js";
import { LiveLine } from "../lib/live-line.js";
import { LiveSound } from "../lib/live-sound.js";
import { letterKeys, loadRecent } from "../lib/store.js";
import { announce, Icon, Mark, notify } from "../lib/ui.js";
import { t } from "../strings.js";

/**
 * @typedef {import("../lib/live-line.js").Caption} Caption
 * @typedef {{id: string, name: string}} Agent
 * @typedef {any} Conversation of `lib/conversation.js`
 */

const EARLIER = 6;       // messages of the conversation so far that stand above the captions
const NEAR_END_PX = 60;

/** Takes the place of the thread and the composer while `talk.isLive`. @param {{talk: Conversation, agent?: Agent}} properties */
export function Live({ talk, agent }) {
  const began = useMemo(() => performance.now(), []);
  const earlier = useMemo(() => talk.messages.peek().filter((/** @type {Caption} */ { role }) => role !== "system").slice(-EARLIER), []);
  const sound = useMemo(() => new LiveSound(), []);
  const line = useMemo(() => new LiveLine(talk.id, sound, t.live.refused), []);
  const isMuted = useSignal(false);
  const name = agent?.name ?? "";

  const leave = async () => { await line.end(); };
  const mute = () => {
    isMuted.value = !isMuted.value;
    sound.mute(isMuted.value);
    announce(isMuted.value ? t.live.muted : t.live.states.listening);
  };
  useEffect(() => {
    let isHere = true;
    /** @param {string | null} problem */
    const over = (problem) => {
      if (!isHere) return;
      isHere = false;
      talk.isLive.value = false;
      talk.load();
      loadRecent().catch(() => {});
      announce(t.live.over);
      if (problem) notify(problem, "bad");
      requestAnimationFrame(() => /** @type {HTMLElement | null} */ (document.querySelector("h1"))?.focus({ preventScroll: true }));
    };
    line.onWords = (words) => { if (words && talk.session.peek() && !talk.session.peek().title) talk.title(firstLine(words)).catch(() => {}); };
    line.onTurn = (what) => announce(what === "lost" ? t.live.states.lost : t.live[what]);
    sound.onLost = () => { line.problem.value = t.live.unplugged; leave().then(() => over(t.live.unplugged)); };
    const unwatch = line.state.subscribe((state) => { if (state === "ended") over(line.problem.peek()); });
    sound.open().then(() => { announce(isMuted.peek() ? t.live.muted : t.live.began); return line.run(); }, (error) => { sound.close(); over(t.mic[/** @type {"other"} */ (error.name)] ?? t.mic.other); });
    return () => { isHere = false; unwatch(); talk.isLive.value = false; line.end(); };
  }, []);
  useEffect(() => {
    /** @param {KeyboardEvent} event */
    const key = (event) => {
      const isElsewhere = /** @type {Element} */ (event.target).closest("input,textarea,select,dialog") || event.ctrlKey || event.metaKey || event.altKey;
      if (event.key === "m" && letterKeys.value && !isElsewhere) { event.preventDefault(); mute(); }
    };
    addEventListener("keydown", key);
    return () => removeEventListener("keydown", key);
  }, []);

  const state = line.state.value;
  const isAnswering = state === "thinking" || state === "speaking";
  const shown = state === "speaking" ? "speaking" : state === "thinking" || state === "connecting" || state === "lost" ? "thinking" : "still";
  const words = state === "speaking" ? t.live.speaks(name) : isMuted.value && state === "listening" ? t.live.muted : t.live.states[/** @type {"listening"} */ (state)];
  return html`<section class="live" aria-label=${t.live.title} data-state=${state}>
    <${Captions} line=${line} earlier=${earlier} name=${name} />
    <div class="composer-place"><div class="composer live-bar">
      <${Meter} line=${line} />
      <div class="composer-row">
        <${Mark} id=${agent?.id} size=${32} state=${shown} level=${line.answerLevel} />
        <p class="live-state"><b>${words}</b><${Clock} began=${began} /></p>
        <span class="grow"></span>
        ${isAnswering && html`<button type="button" class="round" data-kind="stop" aria-label=${t.live.stop} title=${t.live.stop} onClick=${() => line.interrupt()}><${Icon} name="stop" /></button>`}
        <button type="button" class="round" data-kind="plain" aria-pressed=${isMuted.value} aria-label=${isMuted.value ? t.live.unmute : t.live.mute} title=${`${isMuted.value ? t.live.unmute : t.live.mute} (M)`} onClick=${mute}><${Icon} name=${isMuted.value ? "micOff" : "mic"} /></button>
        <button type="button" class="round" data-kind="live" aria-label=${t.live.end} title=${t.live.end} onClick=${leave}><${Icon} name="close" /></button>
      </div></div></div>
  </section>`;
}

/** Follows what is said as long as its reader is at the end. @param {{line: LiveLine, earlier: any[], name: string}} properties */
function Captions({ line, earlier, name }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const isAtEnd = useRef(true);
  const captions = line.captions.value;
  useLayoutEffect(() => { if (box.current && isAtEnd.current) box.current.scrollTop = box.current.scrollHeight; }, [captions]);
  const look = () => {
    if (!box.current) return;
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  };
  return html`<div class="thread-place"><div class="thread" ref=${box} onScroll=${look} tabindex="0" role="log" aria-live="off" aria-label=${t.live.captions}>
    <div class="thread-column">
      ${earlier.map((message) => html`<${Line} key=${message.id} caption=${{ id: message.id, role: message.role, text: message.content, pieces: [], heard: message.heard_content?.length ?? null, isOpen: false, error: null }} name=${name} played=${null} />`)}
      ${!captions.length && html`<p class="live-begin">${t.live.begin}</p>`}
      ${captions.map((caption) => html`<${Line} key=${caption.id} caption=${caption} name=${name} played=${line.state.value === "speaking" ? line.played : null} />`)}
    </div></div></div>`;
}

/** What one side says; of an answer the sentence that sounds is marked, and what was not heard is struck through. @param {{caption: Caption, name: string, played: LiveLine["played"] | null}} properties */
function Line({ caption, name, played }) {
  const { role, text, heard, error, isOpen } = caption;
  if (role === "user") return html`<article class="question" aria-label=${t.chat.you}><div class="bubble" data-voice="true">${text || html`<em>…</em>`}${error && html`<p class="state" data-kind="bad" role="alert">${error}</p>`}</div></article>`;
  return html`<article class="answer" aria-label=${t.chat.answers(name)} aria-busy=${isOpen}>
    ${text && html`<p class="prose karaoke">${heard === null ? html`<${Sentences} caption=${caption} played=${played} />` : html`<${Heard} text=${text} heard=${heard} />`}</p>`}
    ${error && html`<p class="state" data-kind="bad" role="alert"><b>${t.chat.failed}.</b> ${error}</p>`}
  </article>`;
}

/** Struck through by its looks, and by a word for those who do not see them. @param {{text: string, heard: number}} properties */
function Heard({ text, heard }) {
  const rest = text.slice(heard).trim();
  return html`<span>${text.slice(0, heard)}</span>${rest && html` <span class="unseen">(${t.live.unheard} </span><s class="unheard" title=${t.chat.unheard}>${rest}</s><span class="unseen">)</span>`}`;
}

/** @param {{caption: Caption, played: LiveLine["played"] | null}} properties */
function Sentences({ caption: { id, text, pieces }, played }) {
  const now = played?.value;
  if (!pieces.length || now?.item !== id) return text;
  const current = pieces.findLastIndex(({ fromMs }) => fromMs <= now.ms);
  return pieces.map((piece, index) => html`<span key=${index}><span data-sounds=${index === current}>${piece.text.trimEnd()}</span>${/\s$/.test(piece.text) ? " " : ""}</span>`);
}

/** @param {{began: number}} properties */
function Clock({ began }) {
  const now = useSignal(performance.now());
  useEffect(() => { const timer = setInterval(() => { now.value = performance.now(); }, 1000); return () => clearInterval(timer); }, []);
  return html`<span aria-hidden="true">${stopwatch(now.value - began)}</span>`;
}

const BARS = 64;
const TICK_MS = 60;
/** Both voices as they come, newest at the right: bars of the microphone, or of the answer. @param {{line: LiveLine}} properties */
function Meter({ line }) {
  const bars = useRef(/** @type {{level: number, who: string}[]} */ (Array(BARS).fill({ level: 0, who: "quiet" })));
  const tick = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => {
      const [mic, answer] = [line.micLevel.peek(), line.answerLevel.peek()];
      const who = answer > mic ? "answer" : line.state.peek() === "hearing" ? "person" : "quiet";
      bars.current = [...bars.current.slice(1), { level: Math.max(mic, answer), who }];
      tick.value++;
    }, TICK_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<svg class="live-meter" data-tick=${tick.value % 2} viewBox=${`0 0 ${BARS * 6} 40`} preserveAspectRatio="none" aria-hidden="true">${bars.current.map(({ level, who }, index) => html`<rect key=${index} data-who=${who} x=${index * 6 + 1.5} width="3" rx="1.5" y=${20 - Math.max(1.5, level * 19)} height=${Math.max(3, level * 38)} />`)}</svg>`;
}
