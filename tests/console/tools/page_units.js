// Units of app/console that need a browser: loaded into a page, and asked from test_units.py and test_talking.py.
window.played = []; // what has been sounding
const { start } = AudioBufferSourceNode.prototype;
AudioBufferSourceNode.prototype.start = function (...given) {
  if (this.context instanceof AudioContext) window.played.push({ samples: this.buffer.getChannelData(0).slice(), rate: this.buffer.sampleRate });
  return start.apply(this, given);
};

const PIECES = ["# Title\n", "words ", "**bold** ", "*it* ", "`code` ", "\n", "\n\n", "- item\n", "  - inner\n", "1. first\n", "2. second\n", "> said\n", "```js\nlet a = 1;\n```\n",
  "| a | b |\n| --- | --- |\n| 1 | 2 |\n\n", "[link](https://example.com) ", "<b>no tag</b> ", "---\n", "ü🎈 ", "\\* "];

window.units = {
  /** Return those of `count` documents whose blocks differ, lexed as they grow and as a whole. */
  async lexed(count) {
    const [{ Lexer }, { marked }] = await Promise.all([import("./console/lib/markdown.js"), import("marked")]);
    let seed = 7;
    const random = (below) => { seed = (seed * 1103515245 + 12345) % 2147483648; return seed % below; };
    const shape = (tokens) => JSON.stringify(tokens.filter(({ type }) => type !== "space").map(({ type, raw }) => [type, raw.trim()]));
    const wrong = [];
    for (let document = 0; document < count; document++) {
      const text = Array.from({ length: 3 + random(25) }, () => PIECES[random(PIECES.length)]).join("");
      const lexer = new Lexer();
      for (let end = 1 + random(7); end < text.length; end += 1 + random(7)) lexer.blocks(text.slice(0, end), true);
      if (shape(lexer.blocks(text)) !== shape(marked.lexer(text))) wrong.push(text);
    }
    return wrong;
  },

  async stages(turn) {
    const { stagesOf } = await import("./console/lib/ui.js");
    return stagesOf(turn).map(({ stage, from, to }) => [stage, from, to]);
  },

  /** Run a turn against a scripted server; its last step is repeated. */
  async runTurn(script, options) {
    const { runTurn } = await import("./console/lib/api.js");
    const asked = [];
    const [told, waits] = [[], []];
    const fetched = window.fetch;
    window.fetch = async (url, { method, headers, ...rest }) => {
      if (!/messages|turns/.test(url)) return fetched(url, { method, headers, ...rest }); // the page's own
      asked.push([method, new URL(url).pathname + new URL(url).search, headers["Idempotency-Key"] ?? null]);
      const step = script[Math.min(asked.length - 1, script.length - 1)];
      if (step.unreachable) throw new TypeError("Failed to fetch");
      if (step.status) return new Response(JSON.stringify(step.body), { status: step.status });
      const chunks = step.chunks.map((chunk) => new TextEncoder().encode(chunk));
      const body = new ReadableStream({
        async pull(controller) {
          if (chunks.length) { controller.enqueue(chunks.shift()); return; }
          if (!step.cutAfter) { controller.close(); return; }
          while (told.length < step.cutAfter) await new Promise((done) => { setTimeout(done); }); // a cut drops what is not read yet
          controller.error(new TypeError("network error"));
        },
      });
      return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
    };
    let error = null;
    try {
      await runTurn({ ...options, onEvent: ({ id, type }) => told.push([id ?? null, type]), onWaiting: (yes) => waits.push(yes) });
    } catch (problem) { error = problem.code; }
    return { asked, told, error, waited: waits.includes(true) };
  },

  /** Return the loudness in decades, for each 20 ms, of what was played, and of what is stored of the turn's answer. */
  async heard(turn) {
    const loudness = (samples, rate) => Array.from({ length: Math.floor(samples.length / (rate / 50)) }, (_, block) => {
      const part = samples.subarray((block * rate) / 50, ((block + 1) * rate) / 50);
      return Math.log10(Math.sqrt(part.reduce((sum, one) => sum + one * one, 0) / part.length) + 1e-3);
    });
    const answer = await (await fetch(`turns/${turn}/audio`)).arrayBuffer();
    const stored = await new OfflineAudioContext(1, 1, 48_000).decodeAudioData(answer);
    const played = window.played.flatMap(({ samples, rate }) => loudness(samples, rate));
    return { played, stored: loudness(stored.getChannelData(0), stored.sampleRate) };
  },
};
