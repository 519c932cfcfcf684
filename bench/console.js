// What `bench.console` asks of a page: loaded before the page's own scripts.
window.bench = {
  sounds: [], // when each clip begins to sound, in ms of the page's clock
  silences: [],
  clicked: 0,
  fieldAt: undefined,

  /** Scroll `selector` by `px` a second; tell the frames, the longest task, and how many nodes the page has. */
  async frames(selector, px, seconds) {
    const box = document.querySelector(selector) ?? document.scrollingElement;
    const tasks = [0];
    const watch = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)));
    watch.observe({ type: "longtask" });
    const frames = [];
    const began = performance.now();
    for (let last = began; last - began < seconds * 1000;) {
      const now = await new Promise(requestAnimationFrame);
      frames.push(now - last);
      box.scrollTop += (px * Math.min(100, now - last)) / 1000;
      last = now;
    }
    watch.disconnect();
    return { p95: this.p95(frames.slice(1)), longest: Math.max(...tasks), nodes: document.querySelectorAll("*").length };
  },

  /** Type letters; tell the p95 of the times until each is drawn. */
  async typing(count) {
    document.querySelector("textarea").focus();
    const times = [];
    for (let index = 0; index < count; index++) {
      const began = performance.now();
      document.execCommand("insertText", false, "x");
      await new Promise(requestAnimationFrame);
      await new Promise((done) => { const { port1, port2 } = new MessageChannel(); port1.onmessage = done; port2.postMessage(0); });
      times.push(performance.now() - began);
    }
    return this.p95(times);
  },

  /** Go to a conversation; tell how long it takes until its messages are there. */
  async open(session) {
    const began = performance.now();
    location.hash = `#/chat/${session}`;
    while (document.querySelectorAll("article").length < 30) await new Promise(requestAnimationFrame);
    return performance.now() - began;
  },

  /** Only ask for what that needs. */
  async ask(session) {
    const began = performance.now();
    const paths = [`sessions/${session}?messages=false`, `sessions/${session}/messages?order=desc&limit=100`];
    await Promise.all(paths.map(async (path) => (await fetch(path)).json()));
    return performance.now() - began;
  },

  /** How long it takes to lex a text once. */
  async lex(text) {
    const { marked } = await import("marked");
    const began = performance.now();
    for (let round = 0; round < 10; round++) marked.lexer(text);
    return (performance.now() - began) / 10;
  },

  /** When the server had answered to a cancellation, from the last click on; undefined before. */
  cancelledAfter() {
    const asked = performance.getEntriesByType("resource").findLast((entry) => entry.name.endsWith("/cancel") && entry.startTime > this.clicked);
    return asked && asked.responseEnd - this.clicked;
  },

  p95(values) { return values.toSorted((one, other) => one - other)[Math.floor(values.length * 0.95)]; },
};

addEventListener("click", () => { Object.assign(window.bench, { clicked: performance.now(), sounds: [], silences: [] }); }, true);
new MutationObserver((_, watch) => {
  if (!document.querySelector("textarea")) return;
  window.bench.fieldAt = performance.now();
  watch.disconnect();
}).observe(document, { subtree: true, childList: true });
const { start, stop } = AudioBufferSourceNode.prototype;
AudioBufferSourceNode.prototype.start = function (when = 0, ...rest) {
  if (this.context instanceof AudioContext) window.bench.sounds.push(performance.now() + Math.max(0, when - this.context.currentTime) * 1000);
  return start.call(this, when, ...rest);
};
AudioBufferSourceNode.prototype.stop = function (...given) {
  window.bench.silences.push(performance.now());
  return stop.apply(this, given);
};
