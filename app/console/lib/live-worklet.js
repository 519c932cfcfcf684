/** The sound of a live conversation, on the browser's thread for sound: the microphone at 24 kHz, and what is played, counted. */
import { Resampler } from "./resampler.js";

const RATE = 24_000;        // of the line
const FRAME = RATE / 50;    // 20 ms, as it is sent
const REPORT_BLOCKS = 8;    // of 128 samples: 21 ms at 48 kHz

/** Hands out frames of the microphone: 16 bits, mono, with their loudness (RMS). */
class LiveMicrophone extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, RATE);
  #frame = new Int16Array(FRAME);
  #filled = 0;
  #energy = 0;

  /** @param {Float32Array<ArrayBuffer>[][]} inputs */
  process([channels]) {
    if (!channels[0]) return true;
    for (const sample of this.#resampler.feed(channels[0])) {
      this.#frame[this.#filled++] = Math.max(-1, Math.min(1, sample)) * 0x7fff;
      this.#energy += sample * sample;
      if (this.#filled === FRAME) this.#send();
    }
    return true;
  }

  #send() {
    this.port.postMessage({ frame: this.#frame, rms: Math.sqrt(this.#energy / FRAME) }, [this.#frame.buffer]);
    this.#frame = new Int16Array(FRAME);
    this.#filled = this.#energy = 0;
  }
}

/**
 * Plays what comes in, without a gap while there is some, and says how much of which item has been played.
 * It takes `{item, samples}` (24 kHz) and `{stop: number}`, which empties it; the number comes back in its report.
 */
class LivePlayer extends AudioWorkletProcessor {
  #resampler = new Resampler(RATE, sampleRate);
  /** @type {{item: string, samples: Float32Array<ArrayBuffer>, from: number}[]} */
  #queue = [];           // at the rate of the device; `from`: where in its item it begins, in ms
  #offset = 0;           // in the first of the queue
  #played = { item: "", ms: 0 };
  /** @type {Map<string, number>} */
  #given = new Map();    // ms of each item that came
  #blocks = 0;
  #energy = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => {
      if (data.samples) this.#take(data.item, data.samples);
      else this.#stop(data.stop);
    };
  }

  /** @param {string} item @param {Float32Array<ArrayBuffer>} samples */
  #take(item, samples) {
    const from = this.#given.get(item) ?? 0;
    this.#given.set(item, from + (samples.length / RATE) * 1000);
    this.#queue.push({ item, samples: this.#resampler.feed(samples), from });
  }

  /** @param {number} number */
  #stop(number) {
    const next = this.#queue[0];
    if (next && next.item !== this.#played.item) this.#played = { item: next.item, ms: 0 };
    this.#report(number, this.#queue.length > 0);
    this.#queue = [];
    this.#offset = 0;
    this.#given.clear();
    this.#resampler.reset();
  }

  /** @param {unknown} _inputs @param {Float32Array<ArrayBuffer>[][]} outputs */
  process(_inputs, [[output]]) {
    let filled = 0;
    while (filled < output.length && this.#queue.length) {
      const { item, samples, from } = this.#queue[0];
      const part = samples.subarray(this.#offset, this.#offset + output.length - filled);
      output.set(part, filled);
      filled += part.length;
      this.#offset += part.length;
      this.#played = { item, ms: from + (this.#offset / sampleRate) * 1000 };
      if (this.#offset === samples.length) { this.#queue.shift(); this.#offset = 0; }
    }
    for (const sample of output) this.#energy += sample * sample;
    if (++this.#blocks === REPORT_BLOCKS) this.#report(0, filled > 0);
    return true;
  }

  /** @param {number} stop @param {boolean} sounds */
  #report(stop, sounds) {
    this.port.postMessage({ ...this.#played, stop, sounds, rms: Math.sqrt(this.#energy / (128 * Math.max(1, this.#blocks))) });
    this.#blocks = this.#energy = 0;
  }
}

registerProcessor("live-microphone", LiveMicrophone);
registerProcessor("live-player", LivePlayer);
