/** Sound at another rate, block by block. No browser in here: it runs in audio worklets and in tests. */

const HALF = 16;    // input samples on each side of the one that is computed
const STEPS = 64;   // positions between two samples for which the filter is kept
const PASS = 0.92;  // of the lower rate's band; the rest is where the filter falls

/** One filter for each position between two samples: windowed sincs (Hann) whose sum is 1. */
function filtersFor(/** @type {number} */ cutoff) {
  return Array.from({ length: STEPS }, (_, step) => {
    const taps = Float32Array.from({ length: 2 * HALF }, (_, tap) => {
      const distance = tap - HALF + 1 - step / STEPS;
      const x = Math.PI * cutoff * distance;
      const window = Math.abs(distance) >= HALF ? 0 : 0.5 + 0.5 * Math.cos((Math.PI * distance) / HALF);
      return (x ? Math.sin(x) / x : 1) * window;
    });
    const sum = taps.reduce((total, tap) => total + tap, 0);
    return taps.map((tap) => tap / sum);
  });
}

/** Brings mono samples from one rate (Hz) to another; its sound is `HALF` input samples late. */
export class Resampler {
  /** @param {number} from @param {number} to */
  constructor(from, to) {
    /** @type {Float32Array<ArrayBuffer>} */
    this.rest = new Float32Array(2 * HALF - 1);
    this.place = 0; // of the next sample, in input samples from the beginning of `rest`
    this.step = from / to;
    this.isNeeded = from !== to;
    this.filters = this.isNeeded ? filtersFor(Math.min(1, to / from) * PASS) : [];
  }

  /** Forget the sound so far. */
  reset() {
    this.rest = new Float32Array(2 * HALF - 1);
    this.place = 0;
  }

  /** Return the samples that a block makes; the next block goes on where it ends. @param {Float32Array<ArrayBuffer>} block @returns {Float32Array<ArrayBuffer>} */
  feed(block) {
    if (!this.isNeeded) return block;
    const input = new Float32Array(this.rest.length + block.length);
    input.set(this.rest);
    input.set(block, this.rest.length);
    const last = input.length - 2 * HALF; // the last place whose neighbours are all here
    const count = this.place > last + 1 - 1e-9 ? 0 : Math.ceil((last + 1 - this.place) / this.step);
    const output = new Float32Array(count);
    for (let index = 0; index < count; index++) {
      const at = this.place + index * this.step;
      let whole = Math.floor(at);
      let step = Math.round((at - whole) * STEPS);
      if (step === STEPS) { step = 0; whole += 1; }
      if (whole > last) { whole = last; step = STEPS - 1; }
      const filter = /** @type {Float32Array} */ (this.filters[step]);
      let sum = 0;
      for (let tap = 0; tap < 2 * HALF; tap++) sum += /** @type {number} */ (filter[tap]) * /** @type {number} */ (input[whole + tap]);
      output[index] = sum;
    }
    const kept = 2 * HALF - 1;
    this.place += count * this.step - (input.length - kept);
    this.rest = input.slice(-kept);
    return output;
  }
}
