/** One turn: how its time was spent, what it took, and its events; a running one is followed as it goes. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, problemOf, runTurn } from "../lib/api.js";
import { callsOf } from "../lib/calls.js";
import { LiveTurn } from "../lib/conversation.js";
import { count, duration, exactly, money } from "../lib/format.js";
import { html } from "../lib/html.js";
import { CopyButton, Icon, IconButton, STAGES, stagesOf, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { Calls } from "./calls.js";

const ENDED = ["completed", "failed", "cancelled"];

/** The turn as stored, and as watched where it runs: by this page already (`watched`), or by another. @param {string} id @param {LiveTurn} [watched] */
function useTurn(id, watched) {
  const turn = useSignal(/** @type {Turn | null} */ (null));
  const live = useSignal(watched ?? null);
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const status = watched?.status.value;
  useEffect(() => {
    const abort = new AbortController();
    (async () => {
      const stored = /** @type {Turn} */ (await get(`turns/${id}`));
      turn.value = stored;
      if (ENDED.includes(stored.status) || watched) return;
      const followed = new LiveTurn(stored.modality);
      live.value = followed;
      await runTurn({ turnId: id, signal: abort.signal, onEvent: (event) => { if (event.type !== "audio.clip") followed.apply(event); }, onWaiting: (yes) => { followed.waiting.value = yes; } });
      turn.value = await get(`turns/${id}`);
    })().catch((error) => { if (!abort.signal.aborted) problem.value = error; });
    return () => abort.abort();
  }, [id, watched, status]);
  return { turn: turn.value, live: live.value, problem: problem.value };
}

/** @param {{ id: string, talk?: Conversation, onClose: () => void }} props */
export function TurnPanel({ id, talk, onClose }) {
  const watched = talk?.live.value?.id === id ? talk.live.value : talk?.messages.value.find((message) => message.turn_id === id && message.live)?.live;
  return html`<aside class="panel" aria-label=${t.chat.details}>
    <header class="bar"><h2>${t.turn.title}</h2><span class="grow"></span><a class="icon-button" href=${`#/turns/${id}`} aria-label=${t.turn.open} title=${t.turn.open}><${Icon} name="out" /></a><${IconButton} name="close" label=${t.close} onClick=${onClose} /></header>
    <${TurnBody} id=${id} watched=${watched} /></aside>`;
}

/** @param {{ id: string }} props */
export function TurnPage({ id }) {
  useEffect(() => { document.title = `${t.turn.title} · ${t.product}`; }, []);
  return html`<main class="page narrow" id="content"><header class="page-head"><h1 tabindex="-1">${t.turn.title}</h1></header><${TurnBody} id=${id} heading="h2" /></main>`;
}

/** @param {{ id: string, watched?: LiveTurn, heading?: string }} props */
function TurnBody({ id, watched, heading: Heading = "h3" }) {
  const { turn, live, problem } = useTurn(id, watched);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  if (!turn) return html`<p class="loading">${t.loading}</p>`;
  const status = ENDED.includes(turn.status) ? turn.status : live?.status.value ?? turn.status;
  const running = !ENDED.includes(status);
  const { usage } = turn;
  const facts = /** @type {([string, Html] | 0 | "" | false | null)[]} */ ([
    [t.turn.cost, money(usage.cost_usd)],
    [t.turn.prompt, `${count(usage.prompt_tokens)}${usage.cached_tokens ? ` · ${count(usage.cached_tokens)} ${t.turn.cached}` : ""}`],
    [t.turn.completion, `${count(usage.completion_tokens)}${usage.estimated ? ` · ${t.turn.estimated}` : ""}`],
    usage.speech_in_seconds && [t.turn.speechIn, `${usage.speech_in_seconds.toFixed(1)} s`],
    usage.speech_out_characters && [t.turn.speechOut, `${count(usage.speech_out_characters)} characters`],
    [t.turn.model, turn.model ?? "–"],
    [t.turn.version, turn.agent_version],
    turn.attempt > 1 && [t.turn.attempt, turn.attempt],
    turn.finish_reason && [t.turn.finish, turn.finish_reason],
    [t.turn.accepted, exactly(turn.created_at)],
  ]).filter(Boolean);
  return html`<div class="turn">
    <p class="turn-head"><span class="pill" data-status=${status}>${t.turn.status[status]}</span>${running && html`<span class="pill" data-status="live">${t.turn.follow}</span>`}<strong>${duration(turn.timings?.total_ms ?? live?.marks.value.ended)}</strong></p>
    ${turn.error && html`<p class="state" data-kind="bad"><b>${turn.error.code}</b> ${turn.error.detail}</p>`}
    <section><${Heading}>${t.turn.timeline}<//><${Timeline} turn=${turn} live=${live} running=${running} /></section>
    ${!running && html`<section><${Heading}>${t.turn.receipt}<//><dl class="facts">${facts.map((fact) => fact && html`<div key=${fact[0]}><dt>${fact[0]}</dt><dd>${fact[1]}</dd></div>`)}</dl></section>`}
    <section><${Heading}>${t.turn.ids}<//><dl class="facts">${[["turn", turn.id], ["session", turn.session_id ?? ""], ["message", turn.message.id]].map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd class="id"><code title=${value}>${value.slice(0, 8)}…${value.slice(-6)}</code><${CopyButton} text=${value} size=${16} /></dd></div>`)}</dl></section>
    ${turn.steps.length > 0 && html`<${Steps} turn=${turn} Heading=${Heading} />`}
    ${!live && html`<${PastEvents} id=${id} />`}
    ${live && live.events.value.length > 0 && html`<details><summary>${t.turn.events} <span>${live.events.value.length}</span></summary><ol class="events">${live.events.value.map(({ at, type, data }, index) => html`
      <li key=${index}><time>${duration(data.at_ms ?? at)}</time><code>${type}</code><pre>${JSON.stringify(data)}</pre></li>`)}</ol></details>`}
  </div>`;
}

/** The model's answers before the last one, with their tokens and calls. @param {{ turn: Turn, Heading: string }} props */
function Steps({ turn, Heading }) {
  const calls = callsOf(turn);
  /** @param {number} prompt @param {number} completion */
  const tokens = (prompt, completion) => `${count(prompt)} → ${count(completion)} tokens`;
  const sum = (/** @type {"prompt_tokens" | "completion_tokens"} */ name) => turn.steps.reduce((all, step) => all + step[name], 0);
  return html`<section><${Heading}>${t.turn.steps}<//><ol class="steps">${turn.steps.map((step) => html`<li key=${step.number}>
      <p><b>${t.turn.step(step.number)}</b><span class="quiet">${[step.model, tokens(step.prompt_tokens, step.completion_tokens)].filter(Boolean).join(" · ")}</span></p>
      ${step.content && html`<p class="step-text">${step.content}</p>`}<${Calls} calls=${calls.filter((call) => call.step === step.number).map((call) => ({ ...call, action: null }))} turnId=${turn.id} /></li>`)}
    ${turn.status === "completed" && html`<li><p><b>${t.turn.last}</b><span class="quiet">${[turn.model, tokens((turn.usage.prompt_tokens ?? 0) - sum("prompt_tokens"), (turn.usage.completion_tokens ?? 0) - sum("completion_tokens"))].filter(Boolean).join(" · ")}</span></p></li>`}</ol></section>`;
}

/** The events of a turn that has ended, as long as they are stored. @param {{ id: string }} props */
function PastEvents({ id }) {
  const events = useSignal(/** @type {(StreamEvent & { at: number })[] | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const load = async (/** @type {Submitted} */ event) => {
    if (!event.target.open || events.value) return;
    const past = new LiveTurn();
    try {
      await runTurn({ turnId: id, onEvent: (one) => { if (!one.type.startsWith("page.")) past.apply(one); }, onWaiting: () => {} });
      events.value = past.events.peek();
    } catch (error) { problem.value = problemOf(error); }
  };
  return html`<details onToggle=${load}><summary>${t.turn.events}</summary>${problem.value && html`<p class="note">${problem.value.message}</p>`}<ol class="events">${(events.value ?? []).map(({ type, data }, index) => html`<li key=${index}><time>${data.at_ms === undefined ? "" : duration(data.at_ms)}</time><code>${type}</code><pre>${JSON.stringify(data)}</pre></li>`)}</ol></details>`;
}

const [MINUTE, HOUR, DAY] = [60_000, 3_600_000, 86_400_000];
/** Between the lines of a timeline. A turn may wait for days, for somebody who approves. */
const STEPS = [50, 100, 250, 500, 1000, 2000, 5000, 10_000, 30_000, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR, DAY];

/** From the marks of a turn that is watched, the timings that it will have. @param {Record<string, number>} marks @param {number} now @returns {Timings} */
const soFar = ({ created = 0, heard, firstToken, firstSound }, now) => ({
  stt_ms: heard && heard - created, first_token_ms: firstToken && firstToken - created, first_audio_ms: firstSound && firstSound - created, total_ms: now - created });

/** @param {{ turn: Turn, live: LiveTurn | null, running: boolean }} props */
function Timeline({ turn, live, running }) {
  const now = useSignal(live?.now ?? 0);
  useEffect(() => {
    if (!running) return undefined;
    const timer = setInterval(() => { now.value = live?.now ?? 0; }, 100);
    return () => clearInterval(timer);
  }, [running, live]);
  const timings = running && live ? soFar(live.marks.value, now.value) : turn.timings;
  const spans = stagesOf({ ...turn, timings });
  const ended = turn.tool_calls.filter((call) => call.ended_at).map((call) => new Date(call.ended_at ?? "").getTime() - new Date(turn.created_at).getTime());
  const created = live?.marks.value.created ?? 0;
  const clips = (live?.clips.value ?? []).map((clip) => clip.at - created);
  const end = Math.max(timings?.total_ms ?? 0, spans.at(-1)?.to ?? 0, ...ended, ...clips) || 1;
  const step = STEPS.find((size) => end / size <= 4.5) ?? Math.ceil(end / 4 / DAY) * DAY;
  const ticks = Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
  /** @param {number} from @param {number} to */
  const place = (from, to) => ({ left: `${(from / end) * 100}%`, width: `max(3px, ${((to - from) / end) * 100}%)` });
  return html`<div class="timeline">
    <div class="timeline-scale" aria-hidden="true">${ticks.map((tick) => html`<span key=${tick} style=${{ left: `${(tick / end) * 100}%` }}>${tick < 1000 ? `${tick} ms` : tick < MINUTE ? `${tick / 1000} s` : duration(tick)}</span>`)}</div>
    <ol>${STAGES.map((stage) => spans.find((span) => span.stage === stage)).filter((span) => span !== undefined).map(({ stage, from, to }, index, all) => html`
      <li key=${stage}><span>${t.turn.stages[stage]}</span><div class="track"><i data-stage=${stage} data-running=${running && index === all.length - 1} style=${place(from, to)}></i></div><b>${duration(to - from)}</b></li>`)}
      ${turn.tool_calls.filter((call) => call.started_at).map((call) => { const [from, to] = [call.started_at, call.ended_at ?? call.started_at].map((at) => new Date(at ?? "").getTime() - new Date(turn.created_at).getTime()); return html`<li key=${call.id}><span title=${call.name}>${call.name}</span><div class="track"><i data-stage="calling" data-status=${call.status} style=${place(Math.max(0, from), Math.max(from, to))}></i></div><b>${duration(to - from)}</b></li>`; })}
      ${live?.clips.value.map((clip) => html`<li key=${clip.index} class="clip"><span title=${clip.text}>${clip.text}</span><div class="track"><i data-stage="speaking" style=${place(Math.max(0, clip.at - created - 8), clip.at - created)}></i></div><b>${duration(clip.duration)}</b></li>`)}
    </ol></div>`;
}
