// Real clients in Node against a server: `node scenarios.mjs URL KEY SOUND CERTIFICATE`; prints what
// they saw. OpenAI's SDK speaks TLS alone, so that a proxy with the certificate stands in front.
import fs from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import OpenAI from 'openai';
import { OpenAIRealtimeWS } from 'openai/realtime/ws';
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from '@openai/agents-realtime';
import { z } from 'zod';

const [url, apiKey, soundFile, certificateFile] = process.argv.slice(2);
const certificate = fs.readFileSync(certificateFile);
const proxy = tls.createServer({ cert: certificate, key: certificate }, (client) => {
  const server = net.connect(new URL(url).port, '127.0.0.1');
  client.pipe(server).pipe(client);
  client.on('error', () => server.destroy());
  server.on('error', () => client.destroy());
});
await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
const sound = fs.readFileSync(soundFile);
const silence = Buffer.alloc(48_000 * 1.5);
const frames = function* (pcm) {
  for (let start = 0; start < pcm.length; start += 4800) yield pcm.subarray(start, start + 4800);
};

async function sdk() {
  const client = new OpenAI({ apiKey, baseURL: `https://127.0.0.1:${proxy.address().port}/v1` });
  const line = new OpenAIRealtimeWS({ model: 'agent-ada', dangerouslyAllowBrowser: true }, client);
  const seen = { status: [], bytes: 0, transcripts: [], error: null };
  const next = (type) => new Promise((resolve) => line.once(type, resolve));
  line.on('response.output_audio.delta', (event) => (seen.bytes += event.delta.length));
  line.on('conversation.item.input_audio_transcription.completed', (event) =>
    seen.transcripts.push(event.transcript),
  );
  line.on('error', (error) => (seen.error = error.error?.code ?? error.message));
  await next('session.created');
  line.send({
    type: 'conversation.item.create',
    item: { type: 'message', role: 'user', content: [{ type: 'input_text', text: 'Hi.' }] },
  });
  let done = next('response.done');
  line.send({ type: 'response.create' });
  seen.status.push((await done).response.status);
  done = next('response.done');
  for (const frame of frames(Buffer.concat([sound, silence]))) {
    line.send({ type: 'input_audio_buffer.append', audio: frame.toString('base64') });
  }
  seen.status.push((await done).response.status);
  const failed = next('error');
  line.send({ type: 'response.cancel' });
  await failed;
  line.close();
  return { ...seen, bytes: seen.bytes > 0 };
}

async function agents() {
  const cities = [];
  const weather = tool({
    name: 'weather',
    description: 'Tells the weather.',
    parameters: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      cities.push(city);
      return 'Sunny.';
    },
  });
  const agent = new RealtimeAgent({ name: 'Ada', instructions: 'Be brief.', tools: [weather] });
  const transport = new OpenAIRealtimeWebSocket({ url: `${url.replace('http', 'ws')}/v1/realtime?model=agent-ada` });
  const session = new RealtimeSession(agent, { transport, model: 'agent-ada' });
  const errors = [];
  session.on('error', (error) => errors.push(JSON.stringify(error.error ?? error)));
  const answered = new Promise((resolve) => session.on('audio_stopped', resolve));
  await session.connect({ apiKey });
  session.sendMessage('How is the weather?');
  await answered;
  const interrupted = new Promise((resolve) => session.on('audio_interrupted', resolve));
  for (const frame of frames(Buffer.concat([sound, silence]))) {
    session.sendAudio(frame.buffer.slice(frame.byteOffset, frame.byteOffset + frame.length));
  }
  await interrupted;
  await new Promise((resolve) => session.on('audio_stopped', resolve));
  const roles = session.history.map((item) => item.role ?? item.type);
  session.close();
  return { cities, errors, roles };
}

console.log(JSON.stringify({ sdk: await sdk(), agents: await agents() }));
process.exit(0);
