// What the TypeScript client does against a real server: `node scenarios.js NAME URL [ARGUMENT]`.
// Prints one JSON document, and lines beginning with `#` for who watches meanwhile.
import { readFile } from "node:fs/promises";

import { AgentPlatform, AgentPlatformError, ApiError, type TurnEvent, TurnFailed } from "agent-platform-client";

const [, , scenario, baseUrl, argument = ""] = process.argv as [string, string, string, string, string?];
const client = new AgentPlatform({ baseUrl, retrySeconds: 30 });

async function openSession(): Promise<string> {
  const agent = await client.createAgent({ name: "Ada" });
  return (await client.createSession({ agent_id: agent.id })).id;
}

function describe(error: unknown): Record<string, unknown> {
  if (error instanceof TurnFailed) return { name: error.name, code: error.code, turnId: error.turnId };
  if (error instanceof ApiError) return { name: error.name, code: error.code, wait: error.retryAfterSeconds };
  return { name: error instanceof AgentPlatformError ? error.name : String(error) };
}

async function attempt(action: () => Promise<unknown>): Promise<Record<string, unknown>> {
  try {
    return { value: await action() };
  } catch (error) {
    return describe(error);
  }
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

const scenarios: Record<string, () => Promise<unknown>> = {
  async conversation() {
    const agent = await client.createAgent({ name: "Ada" });
    const changed = await client.updateAgent(agent.id, { voice: "nova" });
    const messages = Array.from({ length: 150 }, (_, n) => ({ role: "user" as const, content: `${n}` }));
    const session = await client.createSession({ agent_id: agent.id, messages, metadata: { plan: "a" } });
    const reply = await client.sendText(session.id, "Hi");
    const found = await collect(client.listSessions({ agent_id: agent.id, metadata: { plan: "a" } }));
    const sequence = (await collect(client.listMessages(session.id))).map((message) => message.seq);
    const begun = await client.startText(session.id, "Again.");
    const turn = await client.waitTurn(begun.id);
    const fork = await client.forkSession(session.id, { up_to_seq: 2 });
    await client.deleteSession(fork.id);
    const gone = await attempt(() => client.getSession(fork.id));
    return { changed, session, reply, found, sequence, turn, gone, limit: client.rateLimit?.limit };
  },
  async stream() {
    const sessionId = await openSession();
    console.log("#ready");
    await new Promise((resolve) => process.stdin.once("data", resolve));
    const stream = client.streamText(sessionId, "Count.");
    const events: TurnEvent[] = [];
    for await (const event of stream) {
      events.push(event);
      if (events.length === 5) console.log("#five");
    }
    const messages = await collect(client.listMessages(sessionId));
    return { events, text: stream.text, contents: messages.map((message) => message.content) };
  },
  async cancel() {
    const stream = client.streamText(await openSession(), "Count.");
    const types: string[] = [];
    for await (const event of stream) {
      if (event.type === "output_text.delta" && !types.includes(event.type)) await stream.cancel();
      types.push(event.type);
    }
    return { types, text: stream.text };
  },
  async voice() {
    const sessionId = await openSession();
    console.log("#ready");
    await new Promise((resolve) => process.stdin.once("data", resolve));
    const recording = await readFile(argument);
    const spoken = await client.sendVoice(sessionId, recording);
    const events = await collect(client.followTurn(spoken.turnId));
    const clips = events.flatMap((event) => (event.type === "audio.clip" ? [event.data.text] : []));
    return { ...spoken, mp3: spoken.mp3.length, clips };
  },
  async failure() {
    const sessionId = await openSession();
    const failed = await attempt(() => client.sendText(sessionId, "Hi", { idempotencyKey: "a-key" }));
    const stranger = new AgentPlatform({ baseUrl, apiKey: "ap_wrong" });
    const refused = await attempt(() => stranger.sendText(sessionId, "Hi"));
    const invalid = await attempt(() => client.sendText(sessionId, " "));
    const nobody = new AgentPlatform({ baseUrl: "http://127.0.0.1:9", retrySeconds: 0.3 });
    const lost = await attempt(() => nobody.getAgent("x"));
    const abort = new AbortController();
    const streaming = client.streamText(sessionId, "Hi", { signal: abort.signal });
    for await (const event of streaming) if (event.type === "turn.created") break;
    const left = (await client.waitTurn(streaming.turnId ?? "")).status;
    const outcome = await collect(client.followTurn(streaming.turnId ?? "", 10_000));
    return { failed, refused, invalid, lost, left, outcome: outcome.map((event) => event.type) };
  },
  async refusals() {
    const waited = await attempt(() => client.getAgent(argument));
    const limited = await attempt(() => client.getAgent(argument));
    return { waited, limited };
  },
};

const result = await scenarios[scenario]?.();
process.stdin.destroy(); // which would keep the process alive
console.log(JSON.stringify(result));
