// Units of app/console that need no browser: `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";

const lib = (name) => import(new URL(`../../../app/console/lib/${name}.js`, import.meta.url).href);
globalThis.navigator ??= { language: "en" }; // older Node has none
const { diff } = await lib("diff");
const { duration, money } = await lib("format");
const { Vad } = await lib("vad");

let seed = 7;
const random = (below) => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed % below; };
const text = () => Array.from({ length: random(30) }, () => ["a", "b", " ", "\n", "ü", "word", ".", "🎈"][random(8)]).join("");

test("a diff has both of its texts, whatever they are", () => {
  for (let round = 0; round < 2000; round++) {
    const [before, after] = [text(), text()];
    const runs = diff(before, after, random(2) ? 800 : 2);
    const kept = (kind) => runs.filter(([each]) => each !== kind).map(([, part]) => part).join("");
    assert.equal(kept("+"), before);
    assert.equal(kept("-"), after);
  }
});

test("equal texts differ nowhere, and a word is one change", () => {
  assert.deepEqual(diff("be brief", "be brief"), [["=", "be brief"]]);
  assert.deepEqual(diff("be brief now", "be clear now"), [["=", "be "], ["-", "brief"], ["+", "clear"], ["=", " now"]]);
});

const BLOCK_MS = 43;
/** Feed rows of [loudness, milliseconds]; return what the detector said, with its time. */
function hear(rows, answerSounds = false) {
  const vad = new Vad();
  const said = [];
  let now = 0;
  for (const [loudness, ms] of rows) {
    for (const end = now + ms; now < end; now += BLOCK_MS) {
      const word = vad.feed(loudness, now, answerSounds);
      if (word) said.push(word);
    }
  }
  return said;
}
const QUIET = [0.002, 2000];

test("speech begins and ends once, over a pause within a sentence", () => {
  assert.deepEqual(hear([QUIET, [0.08, 1500], QUIET]), ["start", "end"]);
  assert.deepEqual(hear([QUIET, [0.08, 900], [0.002, 600], [0.08, 900], QUIET]), ["start", "end"]);
});

test("silence, a fan and a cough are no speech", () => {
  assert.deepEqual(hear([QUIET, QUIET]), []);
  assert.deepEqual(hear([[0.02, 8000]]), []);
  assert.ok(!hear([QUIET, [0.09, 200], QUIET]).includes("end"));
});

test("a fan that is switched on does not record for ever", () => {
  const said = hear([QUIET, [0.02, 40_000]]);
  assert.ok(said.length === 0 || said.at(-1) !== "start");
});

test("an echo of the answer does not interrupt it, and somebody who speaks does", () => {
  assert.deepEqual(hear([QUIET, [0.015, 1500], QUIET], true), []);
  assert.deepEqual(hear([QUIET, [0.15, 1500], QUIET], true), ["start", "end"]);
});

test("durations are written in one or two units, however long they are", () => {
  const written = { 0: "0 ms", 999: "999 ms", 1000: "1.00 s", 9994: "9.99 s", 9996: "10.0 s", 59_949: "59.9 s", 59_951: "1 min", 119_600: "2 min", 125_000: "2 min 5 s", 3_600_000: "1 h", 90_061_000: "1 d 1 h", 277_200_000: "3 d 5 h" };
  for (const [ms, text] of Object.entries(written)) assert.equal(duration(Number(ms)), text);
  assert.equal(duration(undefined), "–");
});

test("a price that nobody knows is not nothing", () => {
  assert.deepEqual([money(null), money(0), money(0.00002), money(0.002)], ["no price", "free", "$0.000020", "$0.0020"]);
});

const { Resampler } = await lib("resampler");
/** The amplitude of a tone after it was brought to another rate in blocks of these lengths. */
function toneAfter(from, to, hertz, blocks) {
  const resampler = new Resampler(from, to);
  const out = [];
  for (let at = 0, round = 0; at < from; round++) {
    const size = blocks[round % blocks.length];
    out.push(...resampler.feed(Float32Array.from({ length: size }, (_, i) => Math.sin((2 * Math.PI * hertz * (at + i)) / from))));
    at += size;
  }
  const middle = out.slice(1000, -1000);
  return { seconds: out.length / to, amplitude: Math.sqrt((2 * middle.reduce((sum, v) => sum + v * v, 0)) / middle.length), out };
}

test("sound keeps its length and loudness at another rate, and what does not fit is gone", () => {
  for (const [from, to] of [[48_000, 24_000], [44_100, 24_000], [24_000, 48_000], [24_000, 44_100], [24_000, 24_000]]) {
    const speech = toneAfter(from, to, 1000, [128]);
    assert.ok(Math.abs(speech.seconds - 1) < 0.01, `${from} ${to}`);
    assert.ok(Math.abs(speech.amplitude - 1) < 0.02, `${from} ${to} ${speech.amplitude}`);
  }
  assert.ok(toneAfter(48_000, 24_000, 15_000, [128]).amplitude < 0.02);
});

test("blocks of any length make the same sound", () => {
  const even = toneAfter(44_100, 24_000, 700, [128]).out;
  const odd = toneAfter(44_100, 24_000, 700, [1, 7, 500, 128, 2048]).out;
  const length = Math.min(even.length, odd.length);
  assert.ok(length > 23_000);
  for (let index = 0; index < length; index++) assert.ok(Math.abs(even[index] - odd[index]) < 5e-3);
});
