// What an application with AG-UI's `HttpAgent` does.
import { HttpAgent } from "@ag-ui/client";
import { check, get, lastRequestIsAborted, print, script, server } from "./checks.mjs";

const COLOR = { name: "color", description: "The color of a thing.", parameters: { type: "object" } };
const agentOf = (agent) => new HttpAgent({ url: `${server}/agui/${agent}` });
const say = (agent, content) => agent.addMessage({ id: crypto.randomUUID(), role: "user", content });

await check("three runs", async () => {
  const agent = agentOf("agent-ada");
  for (const content of ["One", "Two", "Three"]) {
    say(agent, content);
    await agent.runAgent();
  }
  return agent.messages.map((message) => `${message.role}: ${message.content}`);
});

await check("stream", async () => {
  const agent = agentOf("agent-ada");
  const kinds = [];
  await script({ chat: { token_delay_seconds: 0.03 } });
  say(agent, "Hi");
  await agent.runAgent({}, { onEvent: ({ event }) => void kinds.push(event.type) });
  await script({ chat: { token_delay_seconds: 0 } });
  const contents = kinds.filter((kind) => kind === "TEXT_MESSAGE_CONTENT").length;
  return { first: kinds[0], last: kinds.at(-1), several: contents > 1 };
});

await check("tool of the application", async () => {
  await script({ chat: { calls: [["color", '{"of": "sky"}']] } });
  const agent = agentOf("agent-tia");
  say(agent, "Which color?");
  await agent.runAgent({ tools: [COLOR] });
  const [call] = agent.messages.findLast((message) => message.toolCalls).toolCalls;
  agent.addMessage({ id: crypto.randomUUID(), role: "tool", toolCallId: call.id, content: "blue" });
  await agent.runAgent({ tools: [COLOR] });
  await script({ chat: { calls: [] } });
  return { call: call.function, roles: agent.messages.map((each) => each.role), text: agent.messages.at(-1).content };
});

await check("tool of the run", async () => {
  await script({ chat: { calls: [["color", '{"of": "sky"}']] } });
  const agent = agentOf("agent-ada"); // which has no tools
  say(agent, "Which color?");
  await agent.runAgent({ tools: [COLOR] });
  const [call] = agent.messages.findLast((message) => message.toolCalls).toolCalls;
  agent.addMessage({ id: crypto.randomUUID(), role: "tool", toolCallId: call.id, content: "blue" });
  await script({ chat: { calls: [] } });
  await agent.runAgent({ tools: [COLOR] });
  return { call: call.function, roles: agent.messages.map((each) => each.role), text: agent.messages.at(-1).content };
});

await check("interrupt", async () => {
  await script({ chat: { calls: [["look", "{}"]] } });
  const agent = agentOf("agent-tia");
  say(agent, "Look");
  await agent.runAgent();
  const [interrupt] = agent.pendingInterrupts;
  await agent.runAgent({ resume: [{ interruptId: interrupt.id, status: "resolved", payload: { approved: true } }] });
  await script({ chat: { calls: [] } });
  return { reason: interrupt.reason, roles: agent.messages.map((each) => each.role), text: agent.messages.at(-1).content };
});

await check("refused", async () => {
  const agent = agentOf("agent-nobody");
  say(agent, "Hi");
  const error = await agent.runAgent().catch((each) => each);
  return { status: error.status };
});

await check("broken", async () => {
  await script({ faults: [{ fault: "reset_at_token", times: 1, at: 2 }] });
  const agent = agentOf("agent-ada");
  let told = null;
  say(agent, "Hi");
  await agent.runAgent({}, { onRunErrorEvent: ({ event }) => void (told = event) }).catch(() => null);
  return { code: told.code, sentence: told.message.endsWith(".") };
});

await check("stop", async () => {
  await script({ chat: { token_delay_seconds: 0.2 } });
  const agent = agentOf("agent-ada");
  say(agent, "Hi");
  await agent
    .runAgent(
      { forwardedProps: { on_disconnect: "cancel" } },
      { onTextMessageContentEvent: () => agent.abortRun() },
    )
    .catch(() => null);
  const aborted = await lastRequestIsAborted();
  await script({ chat: { token_delay_seconds: 0 } });
  const [turn] = await get("/turns?limit=1");
  return { aborted, agentGoesOn: turn.status !== "completed" };
});

print();
