/** The conversation: messages, the turn that runs, the composer with its microphone, and the panel of one turn. */
import { batch, useSignal } from "@preact/signals";
import { useCallback, useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { lookNow, remove } from "../lib/api.js";
import { piecesOf, piecesOfParts } from "../lib/calls.js";
import { conversation } from "../lib/conversation.js";
import { contentOf } from "../lib/files.js";
import { count, duration, exactly, money, stopwatch } from "../lib/format.js";
import { html, memo } from "../lib/html.js";
import { lazy } from "../lib/lazy.js";
import { Lexer, Markdown } from "../lib/markdown.js";
import { agentById, go, panelOpen, recent, titleOf } from "../lib/store.js";
import { ask, CopyButton, Dialog, Empty, Icon, IconButton, Mark, Menu, MenuButton, notify, Ribbon, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { Composer } from "./composer.js";

const TurnPanel = lazy(() => import("./turn.js"), "TurnPanel");
const Calls = lazy(() => import("./calls.js"), "Calls");
const Live = lazy(() => import("./live.js"), "Live");
const Tree = lazy(() => import("./tree.js"), "Tree");

const WIDE = "(min-width: 75.01rem)"; // as in console.css

/** @param {{ id: string }} props */
export function Chat({ id }) {
  const talk = conversation(id);
  useEffect(() => {
    talk.load();
    return talk.follow();
  }, [id]);
  const shown = useSignal(/** @type {string | null} */ (null)); // the turn in the panel
  const renaming = useSignal(false);
  const session = talk.session.value;
  const agent = agentById.value.get(session?.agent_id ?? "");
  talk.name = agent?.name ?? "";
  const title = session ? titleOf({ ...session, preview: talk.messages.value[0]?.content }) : "…";
  useEffect(() => { document.title = `${title} · ${t.product}`; }, [title]);
  if (talk.problem.value && !talk.loaded.value) return html`<main class="page" id="content"><${Trouble} problem=${talk.problem.value} retry=${() => talk.load()} /></main>`;
  const drop = async () => {
    if (!(await ask(t.chat.remove, t.chat.removeAsk, t.chat.remove))) return;
    await remove(`sessions/${id}`);
    recent.value = recent.value.filter((other) => other.id !== id);
    go("");
  };
  const inspect = useCallback((/** @type {string} */ turnId) => { shown.value = turnId; panelOpen.value = true; }, [id]);
  const speaker = (talk.live.value ?? talk.messages.value.at(-1)?.live)?.speaker;
  const last = talk.live.value?.id ?? talk.messages.value.findLast((m) => m.turn_id)?.turn_id;
  const isOpen = panelOpen.value && Boolean(shown.value || matchMedia(WIDE).matches); // over a conversation only when it is asked for
  return html`<div class="chat" data-panel=${isOpen}>
    <main class="chat-main" id="content">
      <header class="bar"><${MenuButton} />
        <${Mark} id=${session?.agent_id} size=${28} state=${(speaker?.sounding.value ?? -1) >= 0 ? "speaking" : "still"} level=${speaker?.level} />
        <div class="bar-title"><h1 tabindex="-1">${title}</h1><p>${agent ? html`<a href=${`#/agents/${agent.id}`}>${agent.name}</a>` : "…"}</p></div>
        <${IconButton} name="panel" label=${t.chat.details} aria-pressed=${isOpen} disabled=${!last} onClick=${() => { panelOpen.value = !isOpen; shown.value = isOpen ? null : last ?? null; }} />
        <${Menu} items=${[
          { icon: "edit", label: t.chat.rename, act: () => { renaming.value = true; } },
          { icon: "download", label: t.chat.export, act: () => location.assign(`sessions/${id}/export`) },
          { icon: "sound", label: t.chat.exportAudio, act: () => location.assign(`sessions/${id}/export?audio=true`) },
          { icon: "trash", label: t.chat.remove, danger: true, act: drop },
        ]} />
      </header>
      ${talk.isLive.value ? html`<${Live} talk=${talk} agent=${agent} />`
    : html`<${Thread} talk=${talk} agent=${agent} inspect=${inspect} />
      <${Composer} id=${id} agent=${agent} talk=${talk} onLive=${() => { talk.isLive.value = true; }} />`}
    </main>
    ${isOpen && last && html`<${TurnPanel} key=${shown.value ?? last} id=${shown.value ?? last} talk=${talk} onClose=${() => { panelOpen.value = false; shown.value = null; }} />`}
    ${renaming.value && html`<${Rename} title=${session?.title} onDone=${(/** @type {string | undefined} */ to) => { renaming.value = false; if (to !== undefined) talk.title(to || null); }} />`}
  </div>`;
}

/** @param {{ title?: string | null, onDone: (title?: string) => void }} props */
function Rename({ title, onDone }) {
  const input = useRef(/** @type {any} */ (null));
  return html`<${Dialog} title=${t.chat.rename} onClose=${() => onDone()}><form method="dialog" onSubmit=${(event) => { event.preventDefault(); onDone(input.current.value.trim()); }}>
    <label class="field">${t.chat.title}<input ref=${input} class="input" maxlength="200" value=${title ?? ""} autofocus /></label><footer><button class="button primary">${t.chat.rename}</button></footer></form><//>`;
}

const STEP = 40;
const MOST = 160; // messages in the page at once: neither 10,000 nodes nor guessed heights, which fight the scrolling

/**
 * The reader's place is never moved while an answer grows. Sending puts the question at the top once (the last turn is as
 * high as the view), and the answer fills the room below it; what grows beyond is reached by scrolling or by the button.
 * @param {{ talk: Conversation, agent?: Agent, inspect: (turnId: string) => void, label?: string }} props
 */
export function Thread({ talk, agent, inspect, label = t.chat.conversation }) {
  const box = useRef(/** @type {any} */ (null));
  const range = useSignal(/** @type {[from: number, to: number] | null} */ (null)); // [from, to) of what is shown; null: the newest
  const below = useSignal(false);
  const held = useRef(/** @type {{ seen: Element, top: number } | null} */ (null)); // a message, and where it was before the range changed
  const busy = useRef(0);    // until when the page itself scrolls
  const messages = talk.messages.value;
  const live = talk.live.value;
  const [from, to] = range.value ?? [Math.max(0, messages.length - STEP), messages.length];
  const atEnd = to >= messages.length;
  const lastQuestion = messages.findLastIndex((message) => message.role === "user");
  const toEnd = (/** @type {ScrollBehavior} */ behavior = "auto") => {
    range.value = null;
    busy.current = performance.now() + 700;
    setTimeout(look, 720);
    requestAnimationFrame(() => box.current?.scrollTo({ top: box.current.scrollHeight, behavior }));
  };
  const hold = () => {
    const seen = [.../** @type {HTMLElement} */ (box.current).querySelectorAll("article")].find((article) => article.getBoundingClientRect().bottom > box.current.getBoundingClientRect().top);
    held.current = seen === undefined ? null : { seen, top: seen.getBoundingClientRect().top };
  };
  const move = (/** @type {[number, number]} */ next) => { hold(); range.value = next; };
  const loadOlder = async () => {
    const older = await talk.older().catch(() => []);
    if (!older.length || !box.current) return;
    hold();
    const start = Math.max(0, older.length - STEP);
    batch(() => { range.value = [start, Math.min(to + older.length, start + MOST)]; talk.messages.value = [...older, ...talk.messages.peek()]; });
  };
  const look = () => {
    if (!box.current) return;
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    if (performance.now() < busy.current) return;
    below.value = !atEnd || scrollHeight - scrollTop - clientHeight > 80;
    if (held.current) return;
    if (scrollTop < 600 && from === 0 && talk.hasOlder) loadOlder();
    else if (scrollTop < 600 && from > 0) move([Math.max(0, from - STEP), Math.min(to, from - STEP + MOST)]);
    else if (scrollHeight - scrollTop - clientHeight < 600 && !atEnd) move([Math.max(from, to + STEP - MOST), Math.min(messages.length, to + STEP)]);
  };
  useLayoutEffect(() => {
    if (held.current?.seen.isConnected) box.current.scrollTop += held.current.seen.getBoundingClientRect().top - held.current.top;
    requestAnimationFrame(() => { held.current = null; });
  }, [range.value]);
  useEffect(() => { talk.isShown = true; lookNow(); return () => { talk.isShown = false; }; }, [talk]);
  useLayoutEffect(() => { toEnd(); }, [talk, talk.loaded.value]);
  useLayoutEffect(() => { if (live && (live.isOwn || !below.peek())) toEnd(matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth"); }, [live]);
  useEffect(() => {
    const watch = new ResizeObserver(look);
    watch.observe(box.current.firstElementChild);
    return () => watch.disconnect();
  }, [from, to, messages.length]);
  const show = (/** @type {Message[]} */ list) => list.map((message) => html`<${Shown} key=${message.seq} message=${message} talk=${talk} agent=${agent} inspect=${inspect} />`);
  const cut = atEnd ? Math.max(from, lastQuestion < 0 ? messages.length : lastQuestion) : to;
  return html`<div class="thread-place"><div class="thread" ref=${box} onScroll=${look} tabindex="0" role="region" aria-label=${label}>
    <div class="thread-column">
      ${talk.session.value?.forked_from_session_id && from === 0 && html`<p class="note"><${Icon} name="fork" size=${16} /><a href=${`#/chat/${talk.session.value.forked_from_session_id}`}>${t.chat.forked}</a></p>`}
      ${talk.loaded.value && !messages.length && !live && html`<${Empty} title=${t.chat.empty} />`}
      ${show(messages.slice(from, cut))}
      ${atEnd && html`<div class="last-turn">${show(messages.slice(cut))}${live && html`<${Answer} live=${live} agent=${agent} talk=${talk} />`}</div>`}
    </div></div>
    ${below.value && html`<button type="button" class="to-latest" aria-label=${t.chat.latest} title=${t.chat.latest} onClick=${() => toEnd(atEnd ? "smooth" : "auto")}><${Icon} name="down" /></button>`}
  </div>`;
}

/** @typedef {{ message: Message, talk: Conversation, agent?: Agent, inspect: (turnId: string) => void }} MessageProps */

const Shown = memo((/** @type {MessageProps} */ { message, talk, agent, inspect }) => {
  if (message.role === "user") return html`<${Question} message=${message} talk=${talk} />`;
  if (message.role !== "assistant") return null;
  return html`<article class="answer" aria-label=${t.chat.answers(agent?.name ?? "")}>
    <${Said} message=${message} talk=${talk} />
    <${State} status=${message.status} error=${message.live?.error.value ?? message.error} retry=${message === talk.messages.value.at(-1) && message.turn_id && !talk.live.value && (() => talk.retry(message).catch((problem) => notify(problem.message, "bad")))} />
    <${Receipt} message=${message} talk=${talk} inspect=${inspect} />
  </article>`;
});

/** The sentence that is heard now is marked where it stands, without a change to the nodes (CSS Custom Highlight API). @param {{ message: Message, talk: Conversation }} props */
function Said({ message, talk }) {
  const place = useRef(/** @type {any} */ (null));
  const { content, live, heard_content: heard } = message;
  const sentence = live?.clips.value[live?.speaker?.sounding.value ?? -1]?.text;
  useEffect(() => {
    const range = sentence && window.Highlight && rangeOf(place.current, sentence);
    if (range) CSS.highlights.set("spoken", new Highlight(range));
    return () => { if (window.Highlight) CSS.highlights.delete("spoken"); };
  }, [sentence]);
  const pieces = piecesOfMessage(message);
  const value = message.output ?? null;
  const isHeard = heard !== null && heard !== undefined;
  const last = pieces.findLastIndex((piece) => piece.text !== undefined); // is shown in another way
  const shown = value !== null ? pieces.filter((_, index) => index !== last) : isHeard ? pieces.filter((piece) => piece.text === undefined) : pieces;
  return html`<div ref=${place}>${shown.map((piece, index) => html`<${Piece} key=${index} piece=${piece} message=${message} talk=${talk} />`)}
    ${value !== null ? html`<${Tree} value=${value} />` : isHeard && html`<${Heard} content=${content} heard=${heard} />`}</div>`;
}

/** What an answer consists of, as `calls.js` says. @param {Message} message @returns {Piece[]} */
function piecesOfMessage({ parts, content, live }) {
  if (!live) return parts?.some((part) => part.type !== "text") ? piecesOfParts(parts) : [{ text: content }];
  const thoughts = live.thoughts.value;
  return [...(thoughts ? [{ thoughts }] : []), ...(live.calls.value.length ? piecesOf(live.text.value, live.calls.value) : [{ text: content }])];
}

/** @param {{ piece: Piece, message: { turn_id?: string | null }, talk: Conversation }} props */
function Piece({ piece, message, talk }) {
  if (piece.calls) return html`<${Calls} calls=${piece.calls} turnId=${message.turn_id} talk=${talk} />`;
  if (piece.images) return html`<${Images} ids=${piece.images} />`;
  if (piece.thoughts) return html`<details class="thoughts"><summary>${t.chat.thoughts}</summary><p>${piece.thoughts}</p></details>`;
  return html`<${Words} text=${piece.text ?? ""} />`;
}

/** @param {{ text: string }} props */
function Words({ text }) {
  const lexer = useMemo(() => new Lexer(), []); // a whole lexing, which knows links that are defined further down
  return html`<div class="prose"><${Markdown} text=${text} lexer=${lexer} /></div>`;
}

/** @param {{ ids: string[] }} props */
const Images = ({ ids }) => html`<div class="images">${ids.map((id) => html`<a key=${id} href=${contentOf(id)} target="_blank" rel="noopener"><img src=${contentOf(id)} alt=${t.files.image} loading="lazy" /></a>`)}</div>`;

/** Images and documents of a question. @param {{ parts: FilePart[] }} props */
const Attached = ({ parts }) => html`<div class="attached">
  <${Images} ids=${parts.filter((part) => part.type === "image").map((part) => part.file_id)} />
  ${parts.filter((part) => part.type === "file").map((part) => html`<a class="file" key=${part.file_id} href=${contentOf(part.file_id)} download title=${part.name}><${Icon} name="file" size=${16} /><span>${part.name}</span></a>`)}</div>`;

/** Where `words` stand in what is shown, however many nodes they go through; null where they do not. @param {Node} place @param {string} words */
function rangeOf(place, words) {
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  const nodes = /** @type {[Node, number][]} */ ([]);
  let all = "";
  while (walker.nextNode()) { nodes.push([walker.currentNode, all.length]); all += walker.currentNode.textContent; }
  const at = all.indexOf(words);
  if (at < 0) return null;
  /** @param {number} offset @returns {[Node, number]} */
  const spot = (offset) => { const [node, start] = nodes.findLast(([, begin]) => begin <= offset) ?? [place, offset]; return [node, offset - start]; };
  const range = new Range();
  const [from, fromOffset] = spot(at);
  const [to, toOffset] = spot(at + words.length - 1);
  range.setStart(from, fromOffset);
  range.setEnd(to, toOffset);
  range.setEnd(range.endContainer, range.endOffset + 1);
  return range;
}

/** @param {{ content: string, heard: string }} props */
const Heard = ({ content, heard }) => html`<p class="prose karaoke">${content.slice(0, heard.length)}<span class="unheard" title=${t.chat.unheard}>${content.slice(heard.length)}</span></p>`;

/** @param {{ status: string, error?: { code: string, detail: string } | null, retry?: (() => void) | false | "" | null }} props */
function State({ status, error, retry }) {
  if (status === "failed") return html`<p class="state" data-kind="bad" role="alert"><b>${t.chat.failed}.</b> ${error?.detail ?? ""} ${error?.code && html`<code>${error.code}</code>`}${retry && error?.code !== "unknown-tool-outcome" && html` <button type="button" class="button" onClick=${retry}>${t.retry}</button>`}</p>`;
  if (status === "cancelled") return html`<p class="state">${t.chat.stopped}</p>`;
  return status === "truncated" ? html`<p class="state">${t.chat.truncated}</p>` : null;
}

/** @param {{ message: Message, talk: Conversation }} props */
function Question({ message, talk }) {
  const editing = useSignal(false);
  const area = useRef(/** @type {any} */ (null));
  const files = filesOf(message) ?? [];
  if (editing.value) return html`<form class="question editing" onSubmit=${(event) => { event.preventDefault(); talk.branch(message.seq, area.current.value.trim(), files); }}>
    <textarea ref=${area} class="input" aria-label=${t.chat.edit} rows="3" autofocus>${message.content}</textarea>
    <footer><button type="button" class="button" onClick=${() => { editing.value = false; }}>${t.cancel}</button><button class="button primary">${t.chat.editSend}</button></footer></form>`;
  const words = message.content || (talk.messages.value.at(-1) === message && talk.live.value?.transcript.value) || "";
  return html`<article class="question" aria-label=${t.chat.you}>
    <div class="actions"><${CopyButton} text=${words} size=${16} />${message.modality === "voice" && message.turn_id && html`<${IconButton} name="play" label=${t.chat.playRecording} size=${16} onClick=${() => new Audio(`turns/${message.turn_id}/recording`).play().catch(() => notify(t.chat.noRecording, "bad"))} />`}<${IconButton} name="edit" label=${t.chat.edit} size=${16} onClick=${() => { editing.value = true; }} /></div>
    <div class="bubble" data-voice=${message.modality === "voice"}>${message.modality === "voice" && html`<span class="voice-tag"><${Icon} name="wave" size=${16} />${message.durationMs ? stopwatch(message.durationMs) : ""}</span>`}${words || (files.length ? null : html`<em>…</em>`)}${files.length > 0 && html`<${Attached} parts=${files} />`}</div>
  </article>`;
}

/** @param {{ live: LiveTurn, agent?: Agent, talk: Conversation }} props */
function Answer({ live, agent, talk }) {
  const state = live.speaker?.level ? "speaking" : "thinking";
  const text = live.text.value;
  const calls = live.calls.value;
  const waits = live.status.value === "requires_action";
  const note = live.waiting.value ? (live.marks.value.created ? t.chat.waiting : t.chat.unsent) : waits ? t.chat.needsYou : live.again.value && !text ? t.chat.again
    : live.status.value === "queued" && live.marks.value.created ? t.chat.queued : live.modality === "voice" && !live.transcript.value ? t.chat.heard : t.chat.thinking;
  const pieces = text || calls.length ? piecesOf(text, calls) : [];
  return html`<article class="answer" aria-label=${t.chat.answers(agent?.name ?? "")} aria-busy=${!waits}>
    ${live.modality === "voice" && live.transcript.value && html`<p class="unseen">${live.transcript}</p>`}
    ${live.thoughts.value && html`<${Piece} piece=${{ thoughts: live.thoughts.value }} />`}
    ${pieces.map((piece, index) => (piece.text === undefined ? html`<${Piece} key=${index} piece=${piece} message=${{ turn_id: live.id }} talk=${talk} />`
    : agent?.output_schema ? html`<pre key=${index} class="raw">${piece.text}</pre>`
    : html`<div key=${index} class="prose growing"><${Markdown} text=${piece.text} lexer=${live.lexer(index)} grows=${index === pieces.length - 1} /></div>`))}
    ${(pieces.at(-1)?.text === undefined || live.waiting.value || waits) && html`<p class="state" data-kind=${live.waiting.value ? "warn" : "wait"}><${Mark} id=${agent?.id} size=${20} state=${waits ? "still" : state} level=${live.speaker?.level} />${note}</p>`}
  </article>`;
}

/** @param {Message} message @returns {FilePart[] | undefined} */
const filesOf = (message) => /** @type {any[] | undefined} */ (message.parts ?? undefined)?.filter((part) => part.file_id);

/** What the answer took, as a line of colour and in words. @param {{ message: Message, talk: Conversation, inspect: (turnId: string) => void }} props */
function Receipt({ message, talk, inspect }) {
  const { timings, usage } = message;
  const index = talk.messages.value.indexOf(message);
  const question = talk.messages.value[index - 1];
  return html`<div class="receipt">
    ${timings && usage && html`<button type="button" class="receipt-line" title=${message.created_at && exactly(message.created_at)} onClick=${() => inspect(message.turn_id ?? "")}>
      <span class="unseen">${t.chat.details}: </span><${Ribbon} turn=${message} />
      <span>${duration(timings.first_audio_ms ?? timings.first_token_ms)} ${timings.first_audio_ms ? t.turn.firstSound : t.turn.first}</span>
      <span class="wide-only">${duration(timings.total_ms)} ${t.turn.total}</span>
      <span class="wide-only">${count(usage.prompt_tokens)} → ${count(usage.completion_tokens)} tokens</span>
      <span>${money(usage.cost_usd)}</span></button>`}
    <div class="actions"><${CopyButton} text=${message.content} size=${16} />
      ${message.modality === "voice" && html`<${IconButton} name="play" label=${t.chat.play} size=${16} onClick=${() => new Audio(`turns/${message.turn_id}/audio`).play()} />`}
      ${question?.role === "user" && (question.content || question.parts) && html`<${IconButton} name="again" label=${t.chat.retry} size=${16} onClick=${() => talk.branch(question.seq, question.content, filesOf(question))} />`}
      <${IconButton} name="fork" label=${t.chat.fork} size=${16} onClick=${() => talk.branch(message.seq + 1)} /></div>
  </div>`;
}
