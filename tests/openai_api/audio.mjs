// What users of the official Node SDK do with sound, against a real server; prints what came as one JSON object.
import { createReadStream } from "node:fs";
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const [baseURL, recording, target] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const file = () => createReadStream(recording);
const model = "whisper-1";

const short = await client.audio.transcriptions.create({ file: file(), model, language: "en" });
const text = await client.audio.transcriptions.create({ file: file(), model, response_format: "text" });
const verbose = await client.audio.transcriptions.create({ file: file(), model, response_format: "verbose_json" });
const kinds = [];
let streamed = "";
for await (const event of await client.audio.transcriptions.create({ file: file(), model, stream: true })) {
  kinds.push(event.type);
  if (event.type === "transcript.text.delta") streamed += event.delta;
}

const input = "Hello there. How are you?";
const speech = await client.audio.speech.create({ model: "tts-1", voice: "nova", input, response_format: "wav" });
await writeFile(target, Buffer.from(await speech.arrayBuffer()));
const error = await client.audio.speech.create({ model: "tts-1", voice: "nova", input: "" }).catch((each) => each);

console.log(
  JSON.stringify({
    short: short.text,
    usage: short.usage.type,
    text,
    segments: verbose.segments.length > 0,
    duration: verbose.duration > 1,
    kinds: [...new Set(kinds)],
    streamed,
    type: speech.headers.get("content-type"),
    error: { name: error.constructor.name, status: error.status, param: error.param },
  }),
);
