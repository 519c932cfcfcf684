/** The sound of a live conversation in the page: a microphone that gives out frames, and a player that knows what it has played. */
import { at } from "./api.js";
import { audioContext } from "./audio.js";


const STOP_MS = 300; // for the player's answer; a browser without a sound device plays nothing, and says nothing
const QUIET_DB = -52;
const LOUD_DB = -6;

/** Loudness (RMS) as a part of what a meter shows, 0 to 1. @param {number} rms */
export const meterOf = (rms) => Math.max(0, Math.min(1, (20 * Math.log10(rms || 1e-5) - QUIET_DB) / (LOUD_DB - QUIET_DB)));

/** Bytes as Base64. @param {Uint8Array} bytes */
export function toBase64(bytes) {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** Base64 of 16-bit samples (little-endian) as numbers from -1 to 1. @param {string} text @returns {Float32Array<ArrayBuffer>} */
export function samplesOf(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length >> 1 }, (_, index) => view.getInt16(index * 2, true) / 0x8000);
}

/** Both directions over the page's one `AudioContext`. */
export class LiveSound {
  /** @type {(frame: Int16Array<ArrayBuffer>, rms: number) => void} */
  onFrame = () => {};
  /** How much of which item was played, and whether it sounds now. @type {(played: {item: string, ms: number}, sounds: boolean, rms: number) => void} */
  onPlayed = () => {};
  /** The microphone was unplugged, or taken away. @type {() => void} */
  onLost = () => {};
  /** @type {AudioContext | null} */
  #context = null;
  /** @type {MediaStream | null} */
  #stream = null;
  /** @type {MediaStreamAudioSourceNode | null} */
  #source = null;
  /** @type {AudioWorkletNode | null} */
  #microphone = null;
  /** @type {AudioWorkletNode | null} */
  #player = null;
  /** @type {Map<number, (played: {item: string, ms: number, sounds: boolean} | null) => void>} */
  #stops = new Map();
  #stopCount = 0;
  #isClosed = false;
  #isMuted = false;

  /** Ask for the microphone. Throws `DOMException`: NotAllowedError, NotFoundError, NotReadableError. @returns {Promise<void>} */
  async open() {
    const context = /** @type {AudioContext} */ (audioContext());
    this.#context = context;
    const audio = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    const [stream] = await Promise.all([navigator.mediaDevices.getUserMedia({ audio }), context.audioWorklet.addModule(at("console/lib/live-worklet.js"))]);
    this.#stream = stream;
    this.mute(this.#isMuted);
    if (this.#isClosed) { this.close(); return; }
    for (const track of stream.getTracks()) track.onended = () => this.onLost();
    this.#source = context.createMediaStreamSource(stream);
    this.#microphone = new AudioWorkletNode(context, "live-microphone", { numberOfOutputs: 0 });
    this.#microphone.port.onmessage = ({ data }) => this.onFrame(data.frame, data.rms);
    this.#player = new AudioWorkletNode(context, "live-player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.#player.port.onmessage = ({ data }) => this.#report(data);
    this.#player.connect(context.destination);
    this.#source.connect(this.#microphone);
  }

  /** @param {{item: string, ms: number, stop: number, sounds: boolean, rms: number}} report */
  #report({ item, ms, stop, sounds, rms }) {
    const late = ((this.#context?.outputLatency || 0) + (this.#context?.baseLatency || 0)) * 1000; // still on its way to the ear
    const played = { item, ms: Math.max(0, Math.round(ms - late)) };
    if (!stop) { this.onPlayed(played, sounds, rms); return; }
    this.#stops.get(stop)?.({ ...played, sounds });
    this.#stops.delete(stop);
    this.onPlayed(played, false, 0);
  }

  /** Play samples (24 kHz) behind those that came before. @param {string} item @param {Float32Array<ArrayBuffer>} samples */
  play(item, samples) { this.#player?.port.postMessage({ item, samples }, [samples.buffer]); }

  /** Fall silent at once; return what was played of the item that sounds, or did last; `null` where that is not known. @returns {Promise<{item: string, ms: number, sounds: boolean} | null>} */
  stop() {
    const player = this.#player;
    if (!player) return Promise.resolve(null);
    const number = ++this.#stopCount;
    return new Promise((resolve) => {
      this.#stops.set(number, resolve);
      player.port.postMessage({ stop: number });
      setTimeout(() => resolve(null), STOP_MS);
    });
  }

  /** The microphone gives out silence, so that a sentence which was begun ends. @param {boolean} isMuted */
  mute(isMuted) { this.#isMuted = isMuted; for (const track of this.#stream?.getTracks() ?? []) track.enabled = !isMuted; }

  close() {
    this.#isClosed = true;
    this.#source?.disconnect();
    this.#player?.disconnect();
    this.#microphone?.port.close();
    this.#player?.port.close();
    for (const track of this.#stream?.getTracks() ?? []) { track.onended = null; track.stop(); }
    this.#stream = this.#source = this.#microphone = this.#player = null;
  }
}

