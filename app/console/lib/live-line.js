/** A live conversation over `/v1/realtime`: what is said by whom, what was heard of it, and a line that is taken up again. */
import { batch, signal } from "@preact/signals";
import { at, page, post, Problem, runTurn } from "./api.js";
import { meterOf, samplesOf, toBase64 } from "./live-sound.js";

/**
 * What one side says. `pieces` are an answer's sentences, each with the time at which its sound begins; `heard` is how many
 * characters were heard of an answer that was interrupted.
 * @typedef {{id: string, role: string, text: string, pieces: {text: string, fromMs: number}[], heard: number | null, isOpen: boolean, error: string | null}} Caption
 * @typedef {"connecting" | "listening" | "hearing" | "thinking" | "speaking" | "lost" | "ended"} LineState
 * @typedef {Record<string, any>} LineEvent
 */

const SETTINGS = { type: "realtime", output_modalities: ["audio"] };
const RATE = 24_000;
const MOST_CAPTIONS = 500;
const MOST_BUFFERED = 1 << 20;   // bytes of sound that nobody takes: 16 s, so the line is dead
const FIRST_TRIES = 4;           // to open the line at all; one that was open is asked for until it is ended
const LONGEST_WAIT_MS = 8000;
const GONE = 1008;               // the key was revoked
const FINAL = ["completed", "failed", "cancelled", "truncated"];
const LOOKED_AT = 20;            // messages that may have been missed
const OURS = "page_";            // begins the ids of events whose refusal nobody needs to know of

/** @param {number} ms @param {AbortSignal} aborted @returns {Promise<void>} */
const pause = (ms, aborted) => new Promise((resolve) => {
  const done = () => { clearTimeout(timer); removeEventListener("online", done); resolve(); };
  const timer = setTimeout(done, ms);
  addEventListener("online", done);
  aborted.addEventListener("abort", done, { once: true });
});

/** The id of the item that a stored message is. @param {string} id */
const itemOf = (id) => `item_${id.replaceAll("-", "")}`;

export class LiveLine {
  /** @type {import("@preact/signals").Signal<LineState>} */
  state = signal(/** @type {LineState} */ ("connecting"));
  /** @type {import("@preact/signals").Signal<Caption[]>} */
  captions = signal(/** @type {Caption[]} */ ([]));
  /** Why the line has ended by itself. @type {import("@preact/signals").Signal<string | null>} */
  problem = signal(/** @type {string | null} */ (null));
  /** What was played of which item. @type {import("@preact/signals").Signal<{item: string, ms: number}>} */
  played = signal({ item: "", ms: 0 });
  /** How loud the microphone is, 0 to 1. */
  micLevel = signal(0);
  /** How loud the answer is, 0 to 1. */
  answerLevel = signal(0);
  /** Called with what a person has said, once it is known. @type {(text: string) => void} */
  onWords = () => {};
  /** Called when an answer was interrupted, and when it was taken up again. @type {(what: "interrupted" | "lost" | "back") => void} */
  onTurn = () => {};
  /** @type {WebSocket | null} */
  #socket = null;
  #ending = new AbortController();
  #last = "";        // the newest item that is known to be stored
  #isAnswering = false;
  #isHearing = false;
  #sounds = false;
  /** Items whose sound is not wanted any more. @type {Set<string>} */
  #cut = new Set();
  /** Milliseconds of sound that came of each answer. @type {Map<string, number>} */
  #received = new Map();
  #count = 0;

  /** `sound` is a `LiveSound`, or what a test has in its place. @param {string} sessionId @param {import("./live-sound.js").LiveSound} sound @param {string} refusedText of a line that cannot be opened */
  constructor(sessionId, sound, refusedText) {
    this.sessionId = sessionId;
    this.sound = sound;
    this.refusedText = refusedText;
    sound.onFrame = (frame, rms) => { this.micLevel.value = meterOf(rms); this.#say(frame); };
    sound.onPlayed = (played, sounds, rms) => { this.answerLevel.value = sounds ? meterOf(rms) : 0; this.#hasPlayed(played, sounds); };
  }

  /** Keep the line open until `end()`; a lost one goes on where it broke off. */
  async run() {
    let why = this.refusedText;
    for (let failures = 0, wasOpen = false; !this.#ending.signal.aborted; failures++) {
      try {
        if (await this.#serve()) { failures = 0; wasOpen = true; } else if (wasOpen) this.#last = ""; // it may be what is refused
      } catch (error) {
        if (!(error instanceof Problem)) throw error;
        why = error.message;
        if (!error.passes && error.status !== 429) this.#end(why);
      }
      if (this.#ending.signal.aborted) return;
      if (!wasOpen && failures >= FIRST_TRIES) { this.#end(why); return; }
      if (wasOpen && this.state.peek() !== "lost") this.#lost();
      await pause(Math.min(LONGEST_WAIT_MS, 250 * 2 ** failures), this.#ending.signal);
    }
  }

  /** Open one line and serve it to its end; return whether it was open. @returns {Promise<boolean>} */
  async #serve() {
    const secret = await post("v1/realtime/client_secrets", { session: SETTINGS, session_id: this.sessionId });
    if (this.#ending.signal.aborted) return false;
    const url = at("v1/realtime");
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("session_id", this.sessionId);
    if (this.#last) url.searchParams.set("after", this.#last);
    const socket = new WebSocket(url, ["realtime", `openai-insecure-api-key.${secret.value}`]);
    this.#socket = socket;
    let wasOpen = false;
    return new Promise((resolve) => {
      socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "session.created") { wasOpen = true; this.#opened(); }
        this.apply(event);
      };
      socket.onclose = ({ code, reason }) => {
        if (this.#socket === socket) this.#socket = null;
        if (code === GONE) this.#end(reason || this.refusedText);
        resolve(wasOpen);
      };
      this.#drop = () => { socket.onclose = null; socket.close(1000); this.#socket = null; resolve(wasOpen); };
      this.#ending.signal.addEventListener("abort", this.#drop, { once: true });
    });
  }

  #opened() {
    const wasLost = this.state.peek() === "lost";
    this.#isHearing = this.#isAnswering = false;
    this.state.value = "listening";
    this.#settle();
    if (!wasLost) return;
    this.onTurn("back");
    this.#catchUp().catch(() => {});
  }

  /** Show what was stored while the line was lost; an answer that runs without it is followed to its end. */
  async #catchUp() {
    for (;;) {
      const { rows } = await page(`sessions/${this.sessionId}/messages`, { order: "desc", limit: LOOKED_AT });
      const first = this.captions.peek()[0]?.id;
      const begin = rows.findIndex((/** @type {LineEvent} */ { id }) => itemOf(id) === first);
      for (const message of rows.slice(0, begin < 0 ? rows.length : begin + 1).reverse()) this.#take(message);
      const [newest] = rows;
      const isOpen = this.captions.peek().find(({ id }) => id === itemOf(newest?.id ?? ""))?.isOpen;
      if (this.#ending.signal.aborted || isOpen || newest?.role !== "assistant" || FINAL.includes(newest.status)) return;
      await runTurn({ turnId: newest.turn_id, onEvent: () => {}, onWaiting: () => {}, signal: this.#ending.signal });
    }
  }

  /** Take over a stored message, unless the line tells of it now. @param {LineEvent} message */
  #take({ id, role, content, heard_content: heard, status, error }) {
    const known = this.captions.peek().find((caption) => caption.id === itemOf(id));
    if (known?.isOpen || !["user", "assistant"].includes(role) || (!content && status !== "failed")) return;
    this.#update(itemOf(id), { role, text: content, pieces: [], heard: typeof heard === "string" ? heard.length : null, isOpen: false, error: error?.detail ?? null });
  }

  #lost() {
    this.state.value = "lost";
    this.#isHearing = false;
    this.#closeOpen();
    this.onTurn("lost");
  }

  /** End the line. What has not been heard of an answer is not part of the conversation. */
  async end() {
    if (this.#ending.signal.aborted) return;
    await this.interrupt();
    this.#end(null);
  }

  /** @param {string | null} problem */
  #end(problem) {
    this.#ending.abort();
    batch(() => { this.problem.value = problem; this.state.value = "ended"; });
    this.sound.close();
  }

  /** Stop the answer that is thought of or sounds. */
  async interrupt() {
    if (this.#isAnswering) this.#send({ type: "response.cancel", event_id: this.#ownId() });
    await this.#silence();
  }

  /** Fall silent, and say what was heard. */
  async #silence() {
    const played = await this.sound.stop();
    this.#sounds = false;
    const open = this.captions.peek().findLast((caption) => caption.role === "assistant" && caption.isOpen);
    const item = played?.sounds || played?.item === open?.id ? played?.item : open?.id;
    if (!item || this.#cut.has(item)) { this.#settle(); return; }
    this.#cut.add(item);
    const ms = played?.item === item ? Math.min(played.ms, Math.floor(this.#received.get(item) ?? 0)) : 0;
    this.#update(item, { heard: this.#guess(item, ms), isOpen: false });
    if (this.#received.has(item)) this.#send({ type: "conversation.item.truncate", event_id: this.#ownId(), item_id: item, content_index: 0, audio_end_ms: ms });
    this.onTurn("interrupted");
    this.#settle();
  }

  /** How many characters were heard, until the server says it exactly: whole sentences. @param {string} item @param {number} ms */
  #guess(item, ms) {
    const caption = this.captions.peek().find(({ id }) => id === item);
    const pieces = caption?.pieces ?? [];
    return pieces.filter((_, index) => (pieces[index + 1]?.fromMs ?? this.#received.get(item) ?? 0) <= ms).reduce((sum, { text }) => sum + text.length, 0);
  }

  #ownId() { return `${OURS}${++this.#count}`; }

  /** @param {LineEvent} event */
  #send(event) { if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(event)); }

  /** @param {Int16Array<ArrayBuffer>} frame */
  #say(frame) {
    const socket = this.#socket;
    if (!socket || this.state.peek() === "lost" || this.state.peek() === "connecting") return;
    if (socket.bufferedAmount > MOST_BUFFERED) { this.#drop(); return; }
    this.#send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(frame.buffer)) });
  }

  /** Give the line up: nobody takes what is said, and closing it in order would wait for that. */
  #drop = () => {};

  /** @param {{item: string, ms: number}} played @param {boolean} sounds */
  #hasPlayed(played, sounds) {
    const before = this.played.peek();
    if (played.item !== before.item || played.ms !== before.ms) this.played.value = played;
    if (sounds === this.#sounds) return;
    this.#sounds = sounds;
    this.#settle();
  }

  /** What the line is doing, from what is known. */
  #settle() {
    if (["ended", "lost", "connecting"].includes(this.state.peek())) return;
    this.state.value = this.#isHearing ? "hearing" : this.#sounds ? "speaking" : this.#isAnswering ? "thinking" : "listening";
  }

  /** @param {string} id @param {Partial<Caption>} changes */
  #update(id, changes) {
    const all = this.captions.peek();
    const index = all.findIndex((caption) => caption.id === id);
    /** @type {Caption} */
    const blank = { id, role: "user", text: "", pieces: [], heard: null, isOpen: true, error: null };
    this.captions.value = index < 0 ? [...all.slice(1 - MOST_CAPTIONS), { ...blank, ...changes }] : all.with(index, { ...all[index], ...changes });
  }

  #closeOpen() { for (const { id, isOpen } of this.captions.peek()) if (isOpen) this.#update(id, { isOpen: false }); }

  /** Take an event of the server. @param {LineEvent} event */
  apply(event) {
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.#isHearing = true;
        this.#settle();
        this.#silence();
        break;
      case "input_audio_buffer.speech_stopped": this.#isHearing = false; this.#settle(); break;
      case "conversation.item.added": this.#added(event.item); break;
      case "conversation.item.input_audio_transcription.delta": this.#update(event.item_id, { text: (this.captions.peek().find(({ id }) => id === event.item_id)?.text ?? "") + event.delta }); break;
      case "conversation.item.input_audio_transcription.completed":
        if (event.transcript) { this.#update(event.item_id, { text: event.transcript, isOpen: false }); this.onWords(event.transcript); }
        else this.captions.value = this.captions.peek().filter(({ id }) => id !== event.item_id); // a cough
        break;
      case "conversation.item.input_audio_transcription.failed": this.#update(event.item_id, { isOpen: false, error: event.error.message }); break;
      case "response.created": this.#isAnswering = true; this.#settle(); break;
      case "response.output_audio_transcript.delta": this.#words(event); break;
      case "response.output_audio.delta": this.#hear(event); break;
      case "conversation.item.truncated": this.#send({ type: "conversation.item.retrieve", event_id: this.#ownId(), item_id: event.item_id }); break;
      case "conversation.item.retrieved": this.#retrieved(event.item); break;
      case "response.done": this.#done(event.response); break;
      case "error":
        if (!String(event.error.event_id ?? "").startsWith(OURS)) this.#update(`error_${++this.#count}`, { role: "assistant", isOpen: false, error: event.error.message });
        break;
      default: break;
    }
  }

  /** @param {LineEvent} item */
  #added({ id, type, role, content, status }) {
    if (type !== "message") return;
    const [part] = content;
    const text = part?.transcript ?? part?.text ?? "";
    const known = this.captions.peek().find((caption) => caption.id === id);
    if (known && !text) return;
    this.#update(id, { role, text, pieces: [], isOpen: status === "in_progress" || (role === "user" && !text) });
  }

  /** @param {LineEvent} event */
  #words({ item_id: id, delta }) {
    const caption = this.captions.peek().find((each) => each.id === id);
    const fromMs = this.#received.get(id) ?? 0;
    this.#update(id, { role: "assistant", text: (caption?.text ?? "") + delta, pieces: [...(caption?.pieces ?? []), { text: delta, fromMs }] });
  }

  /** @param {LineEvent} event */
  #hear({ item_id: id, delta }) {
    if (this.#cut.has(id)) return;
    const samples = samplesOf(delta);
    this.#received.set(id, (this.#received.get(id) ?? 0) + (samples.length / RATE) * 1000);
    this.sound.play(id, samples);
  }

  /** Of an answer that was interrupted the server tells what the agent will remember. @param {LineEvent} item */
  #retrieved({ id, content }) {
    const caption = this.captions.peek().find((each) => each.id === id);
    const heard = content?.[0]?.transcript ?? "";
    if (caption && this.#cut.has(id)) this.#update(id, { heard: heard.length, text: caption.text.startsWith(heard) ? caption.text : heard });
  }

  /** @param {LineEvent} response */
  #done({ output, status, status_details: details }) {
    this.#isAnswering = false;
    for (const { id } of output) if (this.captions.peek().some((caption) => caption.id === id)) this.#update(id, { isOpen: false });
    const said = output.findLast((/** @type {LineEvent} */ { type }) => type === "message");
    if (said) this.#last = said.id;
    if (status === "failed") this.#update(said?.id ?? `error_${++this.#count}`, { role: "assistant", isOpen: false, error: details?.error?.message ?? "" });
    this.#settle();
  }
}
