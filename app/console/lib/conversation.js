/** One session as it is shown: its messages, and the turn that runs now. It outlives the view, so that leaving a page ends nothing. */
import { batch, effect, signal } from "@preact/signals";
import { followSession, get, newKey, page, post, Problem, problemOf, runTurn } from "./api.js";
import { Speaker } from "./audio.js";
import { callsAfter, callsOf } from "./calls.js";
import { firstLine } from "./format.js";
import { Lexer } from "./markdown.js";
import { aloud, go, loadRecent, loadWaiting, newSession, recent, rename, visible } from "./store.js";
import { announce } from "./ui.js";
import { t } from "../strings.js";

const FINAL = ["completed", "failed", "cancelled", "truncated"];
const PAGE = 100; // messages of a history that are asked for at once
const TOGETHER_MS = 20; // events that come together are one reason to look
const known = /** @type {Map<string, Conversation>} */ (new Map());

/** The conversation with this id; the same object each time. @param {string} id */
export function conversation(id) {
  const talk = known.get(id) ?? new Conversation(id);
  known.set(id, talk);
  return talk;
}

/** The newest page of a history, with what is shown of it and before it: what has not changed keeps its nodes. @param {Message[]} seen @param {Message[]} page */
function joined(seen, page) {
  const shown = new Map(seen.map((message) => [message.seq, message]));
  const first = page[0]?.seq ?? 1;
  const before = seen.filter(({ seq }) => seq < first);
  /** @param {Message} message */
  const kept = (message) => {
    const one = shown.get(message.seq);
    return one && one.turn_id === message.turn_id && one.status === message.status && one.content === message.content ? one : message;
  };
  return [...(before.at(-1)?.seq === first - 1 ? before : []), ...page.map(kept)];
}

/** A turn while it is watched: signals that its events move. */
export class LiveTurn {
  id = /** @type {string | null} */ (null);
  isOwn = false; // begun by this page
  status = signal("queued");
  text = signal("");
  transcript = signal("");
  waiting = signal(false);
  again = signal(false);
  error = signal(/** @type {{ code: string, detail: string } | null} */ (null));
  receipt = signal(/** @type {{ usage: Schemas["TurnUsageRead"], timings: Timings } | null} */ (null));
  marks = signal(/** @type {Record<string, number>} */ ({})); // when what happened, in ms since `began`, by this page's clock
  events = signal(/** @type {(StreamEvent & { at: number })[]} */ ([]));
  clips = signal(/** @type {{ index: number, text: string, start: number, duration: number, at: number }[]} */ ([]));
  calls = signal(/** @type {Call[]} */ ([]));  // of tools, as `calls.js` knows them
  thoughts = signal("");
  output = signal(/** @type {unknown} */ (undefined)); // the value of an answer in JSON
  #lexers = /** @type {Lexer[]} */ ([]);
  speaker = /** @type {Speaker | null} */ (null);
  content = /** @type {string | undefined} */ (undefined);
  outcome = /** @type {string | undefined} */ (undefined);
  #began = performance.now();
  #pending = "";
  #frame = 0;
  #attempt = 0;
  #repeats = false; // the next words are those so far

  constructor(modality = "text") { this.modality = modality; }
  /** The lexer of a piece of the answer, which keeps its nodes while it grows. @param {number} index */
  lexer(index) { return (this.#lexers[index] ??= new Lexer()); }
  get now() { return performance.now() - this.#began; }
  /** @param {string} name */
  #mark(name) { if (!(name in this.marks.peek())) this.marks.value = { ...this.marks.peek(), [name]: this.now }; }

  /** Deltas are shown once a frame, however many come. @param {string} delta */
  #paint(delta) {
    if (this.#repeats) { this.#repeats = false; this.text.value = ""; }
    this.#pending += delta;
    this.#frame ||= requestAnimationFrame(() => this.flush());
  }
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#pending) { this.text.value += this.#pending; this.#pending = ""; }
  }

  /** What was said so far is not said: the answer begins anew. @param {number} attempt */
  #begin(attempt) {
    this.flush();
    const [isFirst, goesOn] = [!this.#attempt, this.status.peek() === "requires_action"];
    batch(() => {
      if (goesOn) this.#repeats = true;
      else if (!isFirst || attempt > 1) { this.text.value = ""; this.thoughts.value = ""; this.transcript.value = ""; this.clips.value = []; }
      if (!goesOn && !isFirst) this.again.value = attempt > this.#attempt;
      this.status.value = "in_progress";
    });
    if (!goesOn && !isFirst) { this.speaker?.stop(); this.speaker = null; }
    if (attempt > 1 && !goesOn) get(`turns/${this.id}`).then((turn) => this.take(turn)).catch(() => {});
    this.#attempt = attempt;
  }

  /** Take over what the ledger has: what other pages did, and what was stored before this one watched. @param {Turn} turn */
  take(turn) {
    const seen = new Map(this.calls.peek().map((call) => [call.id, call]));
    if (turn.tool_calls.length || seen.size) this.calls.value = callsOf(turn).map((call) => ({ ...call, at: seen.get(call.id)?.at ?? call.at }));
  }

  /** @param {StreamEvent} event */
  apply({ type, data }) {
    if (type === "page.looked") { this.take(data); return; }
    if (/^(tool_call|action)/.test(type)) { this.flush(); this.calls.value = callsAfter(this.calls.peek(), { type, data }, this.text.peek().length); }
    if (!type.endsWith(".delta")) this.events.value = [...this.events.peek(), { at: this.now, type, data: type === "audio.clip" ? { ...data, mp3: `${data.mp3.length} characters` } : data }];
    switch (type) {
      case "turn.created": this.id = data.turn_id; this.#mark("created"); break;
      case "turn.queued": this.status.value = "queued"; break;
      case "turn.in_progress": this.#begin(data.attempt); this.#mark("started"); break;
      case "turn.requires_action": this.status.value = "requires_action"; announce(t.chat.needsYou); loadWaiting().catch(() => {}); break;
      case "action.resolved": loadWaiting().catch(() => {}); break;
      case "reasoning.delta": this.thoughts.value += data.delta; break;
      case "input_transcript.delta": this.transcript.value += data.delta; break;
      case "input_transcript.done": this.transcript.value = data.text; this.#mark("heard"); break;
      case "output_text.delta": this.#mark("firstToken"); this.#paint(data.delta); break;
      case "audio.clip":
        this.#mark("firstSound");
        this.clips.value = [...this.clips.peek(), { index: data.index, text: data.text, start: data.start_ms, duration: data.duration_ms, at: data.at_ms === undefined ? this.now : (this.marks.peek().created ?? 0) + data.at_ms }];
        if (aloud.peek()) { this.speaker ??= new Speaker(); this.speaker.say(data); }
        break;
      case "turn.completed": case "turn.failed": case "turn.cancelled":
        this.flush();
        this.#mark("ended");
        this.content = data.message?.content;
        if (this.content && (data.output ?? null) === null) this.text.value = this.content; // of JSON it leaves out the steps' texts
        this.output.value = data.output ?? undefined;
        this.error.value = data.error ?? null;
        this.receipt.value = { usage: data.usage ?? {}, timings: data.timings ?? {} };
        this.outcome = data.message?.status ?? type.slice(5); // a completed turn's answer may be cut off: "truncated"
        this.status.value = type.slice(5);
        break;
      default: break;
    }
  }
}

export class Conversation {
  session = signal(/** @type {ListedSession | null} */ (null));
  messages = signal(/** @type {Message[]} */ ([]));
  live = signal(/** @type {LiveTurn | null} */ (null));
  problem = signal(/** @type {Problem | null} */ (null));
  loaded = signal(false);
  next = signal(/** @type {{ text: string, files: FilePart[] } | null} */ (null)); // what is said once the running turn has ended: `{text, files}`
  isLive = signal(false); // it is spoken over a line, which tells what is said
  isShown = false;
  agentVersion = /** @type {number | null} */ (null); // that answers; `null` for the newest
  #abort = /** @type {AbortController | null} */ (null);
  #isLoadingOlder = false;
  #reload = 0;
  name = "";

  /** @param {string} id */
  constructor(id) { this.id = id; }

  async load() {
    if (this.live.value || (this.isLive.value && this.loaded.value)) return;
    const seen = this.messages.value;
    try {
      this.problem.value = null;
      const [{ messages: _, ...session }, { rows }] = await Promise.all([get(`sessions/${this.id}`, { messages: false }), page(`sessions/${this.id}/messages`, { order: "desc", limit: PAGE })]);
      const messages = joined(seen, rows.reverse());
      batch(() => { this.session.value = session; this.loaded.value = true; });
      if (this.live.value || this.messages.value !== seen) return; // something was said meanwhile
      this.messages.value = messages;
      const last = messages.at(-1);
      if (this.isLive.value) return;
      if (last?.role === "assistant" && !FINAL.includes(last.status)) this.#watch(messages.slice(0, -1), { turnId: last.turn_id ?? "", modality: last.modality });
    } catch (error) { this.problem.value = problemOf(error); }
  }

  /** Whether the history goes on before what is loaded. */
  get hasOlder() { return (this.messages.peek()[0]?.seq ?? 1) > 1; }

  /** Return the page of messages before those that are loaded, oldest first; `[]` while one is on its way. */
  async older() {
    if (this.#isLoadingOlder || !this.hasOlder) return [];
    this.#isLoadingOlder = true;
    try {
      const { rows } = await page(`sessions/${this.id}/messages`, { order: "desc", before: this.messages.peek()[0]?.seq, limit: PAGE });
      return rows.reverse();
    } finally { this.#isLoadingOlder = false; }
  }

  /**
   * Follow what others do in the session (another tab, a server, somebody who approves) while it is seen and no turn runs
   * here. Return what ends it. One connection at a time: browsers have six for all tabs of a host.
   */
  follow() {
    return effect(() => {
      if (!visible.value || !this.loaded.value || this.live.value || this.isLive.value) return undefined;
      const abort = new AbortController();
      followSession(this.id, abort.signal, (event) => this.#hear(event)).catch(() => {}); // deleted, or refused: what is shown stays
      return () => abort.abort();
    });
  }

  /** @param {StreamEvent} event */
  #hear({ type, data }) {
    const messages = this.messages.peek();
    let isKnown = true;
    if (type === "session.changed") {
      if (data.title !== this.session.peek()?.title) recent.value = recent.value.map((other) => (other.id === data.id ? { ...other, title: data.title } : other));
      this.session.value = data;
      isKnown = data.last_seq === (messages.at(-1)?.seq ?? 0);
    } else if (type === "turn.changed") {
      const answer = messages.findLast((message) => message.turn_id === data.turn_id && message.role === "assistant");
      isKnown = FINAL.includes(data.status) && data.status === (answer?.status === "truncated" ? "completed" : answer?.status);
    }
    if (isKnown) return;
    clearTimeout(this.#reload);
    this.#reload = setTimeout(() => this.load(), TOGETHER_MS);
  }

  /** Say it now, or as soon as the running answer has ended. @param {string} text @param {FilePart[]} files @returns {Promise<LiveTurn | null>} */
  async say(text, files = []) {
    if (!this.live.value) return this.#say(text, files);
    this.next.value = { text, files };
    return null;
  }

  /** @param {string} text @param {FilePart[]} files */
  #say(text, files) {
    const words = /** @type {any[]} */ (text ? [{ type: "text", text }] : []);
    const content = files.length ? [...words, ...files.map(({ type, file_id }) => ({ type, file_id }))] : text;
    return this.#start(text, { path: "messages/text", body: { session_id: this.id, content, ...(this.agentVersion && { agent_version: this.agentVersion }) } }, "text", { parts: files.length ? [...words, ...files] : null });
  }

  /** @param {Recording} recording */
  speak({ blob, durationMs }) {
    const body = new FormData();
    body.append("session_id", this.id);
    body.append("audio", blob, "recording.wav");
    return this.#start("", { path: "messages/voice", body }, "voice", { durationMs });
  }

  /** @param {string} content @param {{ path: string, body: unknown }} request @param {string} modality @param {Partial<Message>} more */
  #start(content, request, modality, more) {
    const seq = (this.messages.peek().at(-1)?.seq ?? 0) + 1;
    const mine = { id: newKey(), seq, role: "user", content, modality, status: "completed", ...more, created_at: new Date().toISOString() };
    if (content && this.session.value && !this.session.value.title) this.title(firstLine(content)).catch(() => {});
    return this.#watch([...this.messages.peek(), mine], { ...request, modality });
  }

  /**
   * Show the turn as it runs, after `before`; then what the server has stored of it.
   * @param {Message[]} before @param {{ modality: string, path?: string, body?: unknown, turnId?: string }} turn
   */
  async #watch(before, { modality, ...request }) {
    const live = new LiveTurn(modality);
    live.isOwn = Boolean(request.path);
    this.#abort = new AbortController();
    batch(() => { this.messages.value = before; this.live.value = live; this.problem.value = null; });
    announce(t.chat.answering(this.name));
    try {
      await runTurn({ ...request, signal: this.#abort.signal, onEvent: (event) => live.apply(event), onWaiting: (yes) => { live.waiting.value = yes; }, isWatched: () => this.isShown });
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (!live.id) { // refused: nothing was stored
        batch(() => { this.live.value = null; this.messages.value = this.messages.peek().slice(0, -1); this.problem.value = error; });
        throw error;
      }
      live.error.value = { code: error.code, detail: error.message };
      live.status.value = "failed";
    }
    this.#settle(live, before);
    return live;
  }

  /** @param {LiveTurn} live @param {Message[]} before */
  #settle(live, before) {
    const asked = before.at(-1);
    const seq = asked?.seq ?? 0;
    const question = asked?.role === "user" ? [{ ...asked, turn_id: live.id, content: live.transcript.peek() || asked.content }] : [];
    const status = live.outcome ?? live.status.peek();
    /** @type {Message} */
    const answer = { id: `${live.id}-answer`, turn_id: live.id, seq: seq + 1, role: "assistant", content: live.content || live.text.peek(), output: live.output.peek(), status, modality: live.modality, live, heard_content: null, ...live.receipt.peek(), error: live.error.peek(), created_at: new Date().toISOString() };
    batch(() => {
      this.messages.value = [...before.slice(0, before.length - question.length), ...question, answer];
      this.live.value = null;
    });
    announce(status === "failed" ? `${t.chat.failed}: ${live.error.peek()?.detail ?? ""}` : live.text.peek().slice(0, 600));
    if (!this.session.value?.title && live.transcript.peek()) this.title(firstLine(live.transcript.peek())).catch(() => {});
    loadRecent().catch(() => {});
    if (live.id && (live.calls.peek().length || !live.receipt.peek()?.timings?.total_ms)) this.#receipt(live).catch(() => {});
    const { value: next } = this.next;
    this.next.value = null;
    if (next) this.#say(next.text, next.files).catch(() => {});
  }

  /** What the last event does not say: what a turn took that did not complete, and how its calls ended. */
  /** @param {LiveTurn} live */
  async #receipt(live) {
    const turn = await get(`turns/${live.id}`);
    live.take(turn);
    this.messages.value = this.messages.peek().map((message) => (message.turn_id === live.id && message.role === "assistant" ? { ...message, usage: turn.usage, timings: turn.timings } : message));
  }

  /** End the running answer; of a spoken one, only what was heard stays in the memory of the agent. */
  async stop() {
    const live = this.live.value ?? this.messages.value.at(-1)?.live;
    const speaker = live?.speaker;
    const playedMs = speaker?.playing ? speaker.stop() : undefined;
    if (!live?.id || (!this.live.value && playedMs === undefined)) return;
    const turn = await post(`turns/${live.id}/cancel`, playedMs === undefined ? {} : { played_ms: playedMs });
    const { heard_content: heard } = turn.message;
    if (heard !== null) this.messages.value = this.messages.value.map((message) => (message.turn_id === live.id && message.role === "assistant" ? { ...message, heard_content: heard } : message));
  }

  /** Run the failed turn of the last answer again, in place. @param {Message} message */
  async retry({ turn_id: turnId, modality }) {
    if (!turnId) return null;
    await post(`turns/${turnId}/retry`, {}, null);
    return this.#watch(this.messages.peek().filter((message) => message.role === "user" || message.turn_id !== turnId), { turnId, modality });
  }

  /** @param {string | null} title */
  async title(title) {
    const session = this.session.value;
    if (session) this.session.value = { ...session, ...(await rename(session, title)) };
  }

  /**
   * Copy what stands before `seq` into a new session, go there, and say `content` (with `files`): nothing that was said is lost.
   * @param {number} seq @param {string} [content] @param {FilePart[]} files
   */
  async branch(seq, content, files = []) {
    const fork = await post(`sessions/${this.id}/fork`, { up_to_seq: seq - 1 });
    const title = content ? firstLine(content) : this.session.value?.title ?? null;
    recent.value = [await rename(fork, title), ...recent.value];
    const next = conversation(fork.id);
    await next.load();
    go(`chat/${fork.id}`);
    if (content || files.length) next.say(content ?? "", files).catch(() => {});
  }
}

/** Begin a session with an agent and its first words (text, a recording, or what is said live). @param {string} agentId @param {FirstWords} words */
export async function begin(agentId, { text, files, recording, isLive = false }) {
  const session = await newSession(agentId, text);
  const fresh = conversation(session.id);
  batch(() => { fresh.session.value = session; fresh.loaded.value = true; fresh.isLive.value = isLive; });
  go(`chat/${session.id}`);
  if (!isLive) (recording ? fresh.speak(recording) : fresh.say(text ?? "", files)).catch(() => {});
  return fresh;
}
