/** Sound in and out: a microphone whose recordings are 16 kHz WAV, and a speaker that plays clips without a gap. */
import { signal } from "@preact/signals";
import { at } from "./api.js";
import { Vad } from "./vad.js";

const RATE = 16_000;
const PRE_ROLL_MS = 400;

/** @type {AudioContext | undefined} */
let context;
/** One context for the whole page, opened inside a click: browsers let no sound out that nobody asked for. */
export function audioContext() {
  context ??= new AudioContext({ latencyHint: "interactive" });
  if (context.state !== "running") context.resume(); // not awaited: without a sound device it never settles
  return context;
}

/** Why the microphone cannot be used on this page, or null. */
export function microphoneObstacle() {
  if (!isSecureContext) return "insecure";
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "unsupported";
  return null;
}

/**
 * Listens in one of two ways: `hold()` .. `release()` records what is between; with `handsFree` the recording begins
 * by itself when somebody speaks (400 ms before it was noticed) and ends with the silence after it.
 */
export class Microphone {
  level = signal(0);
  state = signal("closed"); // closed, opening, listening, recording
  handsFree = false;
  passesOn = false; // to the composer of the conversation that the recording begins
  answerSounds = () => false;
  onSpeech = () => {};
  /** @type {(recording: Recording | null) => unknown} */
  onRecording = () => {};
  #blocks = /** @type {Float32Array<ArrayBuffer>[]} */ ([]);
  #length = 0;
  #vad = new Vad();

  /** Ask for the microphone. Throws `DOMException`: NotAllowedError, NotFoundError, NotReadableError. */
  async open() {
    if (this.state.value !== "closed") return;
    this.state.value = "opening";
    try {
      const out = audioContext();
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 } });
      await out.audioWorklet.addModule(at("console/lib/mic-worklet.js"));
      this.#source = out.createMediaStreamSource(this.#stream);
      this.#tap = new AudioWorkletNode(out, "tap", { numberOfOutputs: 0 });
      this.#tap.port.onmessage = (/** @type {MessageEvent<Float32Array<ArrayBuffer>>} */ { data }) => this.#take(data);
      this.#source.connect(this.#tap);
      this.#vad = new Vad();
      this.state.value = "listening";
    } catch (error) {
      this.close();
      throw error;
    }
  }
  #stream = /** @type {MediaStream | undefined} */ (undefined);
  #source = /** @type {MediaStreamAudioSourceNode | undefined} */ (undefined);
  #tap = /** @type {AudioWorkletNode | undefined} */ (undefined);

  close() {
    this.#tap?.port.close();
    this.#source?.disconnect();
    this.#stream?.getTracks().forEach((track) => track.stop());
    this.#stream = this.#source = this.#tap = undefined;
    this.#blocks = [];
    this.level.value = 0;
    this.state.value = "closed";
  }

  hold() { if (this.state.value === "listening") { this.#keepPreRoll(); this.state.value = "recording"; } }

  /** End a recording and give it out; with `discard` it is forgotten. */
  async release(discard = false) {
    if (this.state.value !== "recording") return;
    this.state.value = "listening";
    const blocks = this.#blocks;
    this.#blocks = [];
    if (!discard) this.onRecording(await wavOf(blocks, audioContext().sampleRate));
  }

  /** @param {Float32Array<ArrayBuffer>} block */
  #take(block) {
    let sum = 0;
    for (const sample of block) sum += sample * sample;
    const rms = Math.sqrt(sum / block.length);
    this.level.value = Math.max(0, Math.min(1, (20 * Math.log10(rms || 1e-5) + 52) / 46)); // -52 dB is silence, -6 dB is loud
    this.#blocks.push(block);
    this.#length = block.length;
    if (this.handsFree) {
      const said = this.#vad.feed(rms, performance.now(), this.answerSounds());
      if (said === "start") { this.onSpeech(); this.hold(); }
      if (said === "end" || said === "abort") this.release(said === "abort");
    }
    if (this.state.value === "listening") this.#keepPreRoll();
  }

  #keepPreRoll() {
    const blocks = Math.ceil((PRE_ROLL_MS / 1000) * (audioContext().sampleRate / (this.#length || 2048)));
    if (this.#blocks.length > blocks) this.#blocks.splice(0, this.#blocks.length - blocks);
  }
}

/**
 * Bring blocks of samples to 16 kHz, 16 bit, mono: what the server reads without a decoder, and needs no container's length.
 * @param {Float32Array<ArrayBuffer>[]} blocks @param {number} rate @returns {Promise<Recording | null>}
 */
async function wavOf(blocks, rate) {
  const length = blocks.reduce((sum, block) => sum + block.length, 0);
  if (!length) return null;
  const offline = new OfflineAudioContext(1, Math.ceil((length * RATE) / rate), RATE);
  const buffer = offline.createBuffer(1, length, rate);
  let offset = 0;
  for (const block of blocks) { buffer.copyToChannel(block, 0, offset); offset += block.length; }
  const source = Object.assign(offline.createBufferSource(), { buffer });
  source.connect(offline.destination);
  source.start();
  const samples = (await offline.startRendering()).getChannelData(0);
  const view = new DataView(new ArrayBuffer(44 + samples.length * 2));
  /** @param {number} position @param {string} text */
  const word = (position, text) => [...text].forEach((letter, index) => view.setUint8(position + index, letter.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + samples.length * 2, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, RATE * 2, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, index) => view.setInt16(44 + index * 2, Math.max(-1, Math.min(1, sample)) * 0x7fff, true));
  return { blob: new Blob([view.buffer], { type: "audio/wav" }), durationMs: (samples.length / RATE) * 1000 };
}

/** Plays the clips of one answer in their order, each where the one before it ends, and knows how much was heard. */
export class Speaker {
  level = signal(0);
  sounding = signal(-1); // index of the clip that is heard now, -1 in silence
  #clips = /** @type {{ source: AudioBufferSourceNode, begin: number, end: number, clip: Clip }[]} */ ([]);
  #end = 0;
  #queue = Promise.resolve();
  #stopped = false;
  #onEnd;
  firstSoundAt = /** @type {number | undefined} */ (undefined); // ms of this page's clock

  constructor(onEnd = () => {}) {
    this.#onEnd = onEnd;
    this.context = audioContext();
    this.analyser = Object.assign(this.context.createAnalyser(), { fftSize: 512 });
    this.analyser.connect(this.context.destination);
  }

  /** Add a clip as it comes from the stream. @param {Clip} clip */
  say(clip) {
    const bytes = Uint8Array.from(atob(clip.mp3), (letter) => letter.charCodeAt(0));
    const decoded = this.context.decodeAudioData(bytes.buffer);
    this.#queue = this.#queue.then(async () => {
      const buffer = await decoded;
      if (this.#stopped) return;
      const source = Object.assign(this.context.createBufferSource(), { buffer });
      source.connect(this.analyser);
      const begin = Math.max(this.#end, this.context.currentTime + 0.02);
      source.start(begin);
      this.#end = begin + buffer.duration;
      this.#clips.push({ source, begin, end: this.#end, clip });
      this.firstSoundAt ??= performance.now() + (begin - this.context.currentTime) * 1000;
      this.#watch();
    }, () => {});
  }

  /** Milliseconds of the answer that have left the loudspeaker. */
  get playedMs() {
    const now = this.context.currentTime - (this.context.outputLatency || 0);
    const last = this.#clips.filter(({ begin }) => begin <= now).at(-1);
    return last ? Math.round(last.clip.start_ms + (Math.min(now, last.end) - last.begin) * 1000) : 0;
  }

  get playing() { return !this.#stopped && this.context.currentTime < this.#end; }

  /** Fall silent at once; return what was heard, in milliseconds. */
  stop() {
    const { playedMs } = this;
    this.#stopped = true;
    for (const { source } of this.#clips) { try { source.stop(); } catch { /* has not begun */ } }
    this.level.value = 0;
    this.sounding.value = -1;
    return playedMs;
  }

  #frame = 0;
  #watch() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const now = this.context.currentTime;
      const wave = new Float32Array(this.analyser.fftSize);
      this.analyser.getFloatTimeDomainData(wave);
      if (this.playing) {
        this.level.value = Math.min(1, Math.sqrt(wave.reduce((sum, v) => sum + v * v, 0) / wave.length) * 5);
        this.sounding.value = this.#clips.find(({ begin, end }) => begin <= now && now < end)?.clip.index ?? -1;
        this.#watch();
      } else if (!this.#stopped) {
        this.level.value = 0;
        this.sounding.value = -1;
        this.#onEnd();
      }
    });
  }
}
