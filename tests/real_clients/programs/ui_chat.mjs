// What pages with `useChat` do: version 7 with React's chat, or version 5.0.0, which refuses unknown keys.
import { check, get, lastRequestIsAborted, print, provider, script, server, until } from "./checks.mjs";

const is5 = process.argv[5] === "ai-5";
const sdk = await import(is5 ? "ai-5" : "ai");
const { Chat: ReactChat } = await import("@ai-sdk/react");

class State {
  status = "ready";
  error = undefined;
  messages = [];
  statuses = [];
  pushMessage = (message) => { this.messages = [...this.messages, message]; };
  popMessage = () => { this.messages = this.messages.slice(0, -1); };
  replaceMessage = (index, message) => { this.messages = this.messages.with(index, structuredClone(message)); };
  snapshot = (thing) => structuredClone(thing);
}
class PlainChat extends sdk.AbstractChat {
  constructor(options) {
    super({ ...options, state: new State() });
  }
}
const Chat = is5 ? PlainChat : ReactChat;
let number = 0;

function chatWith(agent, more = {}) {
  const id = more.id ?? `${is5 ? "five" : "seven"}-${++number}`;
  const body = { agent, ...more.body };
  const transport = new sdk.DefaultChatTransport({ api: `${server}/api/chat`, body });
  return new Chat({ ...more, id, transport });
}
const textOf = (message) =>
  message.parts.filter((part) => part.type === "text").map((part) => part.text).join("|");

await check("three turns", async () => {
  const chat = chatWith("agent-ada");
  for (const text of ["One", "Two", "Three"]) await chat.sendMessage({ text });
  return chat.messages.map((message) => `${message.role}: ${textOf(message)}`);
});

await check("stream", async () => {
  await script({ chat: { token_delay_seconds: 0.03 } });
  const chat = chatWith("agent-ada");
  const sending = chat.sendMessage({ text: "Hi" });
  const statuses = new Set();
  const watch = setInterval(() => statuses.add(chat.status), 1);
  await sending;
  clearInterval(watch);
  await script({ chat: { token_delay_seconds: 0 } });
  const { usage, turnId } = chat.lastMessage.metadata;
  const turn = await get(`/turns/${turnId}`);
  return { statuses: statuses.has("streaming"), usage: usage.outputTokens > 0, id: turn.message.id === chat.lastMessage.id };
});

await check("regenerate", async () => {
  const chat = chatWith("agent-ada");
  await chat.sendMessage({ text: "One" });
  await chat.sendMessage({ text: "Two" });
  await chat.regenerate();
  await chat.sendMessage({ text: "Three" });
  return chat.messages.map(textOf);
});

await check("edit", async () => {
  const chat = chatWith("agent-ada");
  await chat.sendMessage({ text: "One" });
  await chat.sendMessage({ text: "Two" });
  await chat.sendMessage({ text: "Zwei", messageId: chat.messages[2].id });
  return chat.messages.map(textOf);
});

await check("tool of the page", async () => {
  await script({ chat: { calls: [["color", '{"of": "sky"}']] } });
  const chat = chatWith("agent-tia", {
    sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithToolCalls,
    onToolCall({ toolCall }) {
      const answer = { tool: "color", toolCallId: toolCall.toolCallId, output: `blue ${toolCall.input.of}` };
      (chat.addToolOutput ?? chat.addToolResult)(answer);
    },
  });
  await chat.sendMessage({ text: "Which color?" });
  await until(() => chat.status === "ready" && textOf(chat.lastMessage) !== "");
  await script({ chat: { calls: [] } });
  const tool = chat.lastMessage.parts.find((part) => part.type === "tool-color");
  return { messages: chat.messages.length, state: tool.state, output: tool.output, text: textOf(chat.lastMessage) };
});

if (!is5) {
  for (const approved of [true, false]) {
    await check(approved ? "approved" : "denied", async () => {
      await script({ chat: { calls: [["look", "{}"]] } });
      const chat = chatWith("agent-tia", {
        sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithApprovalResponses,
      });
      await chat.sendMessage({ text: "Look" });
      const asked = chat.lastMessage.parts.find((part) => part.type === "tool-look");
      await chat.addToolApprovalResponse({ id: asked.approval.id, approved });
      await until(() => chat.status === "ready" && textOf(chat.lastMessage) !== "");
      await script({ chat: { calls: [] } });
      const part = chat.lastMessage.parts.find((each) => each.type === "tool-look");
      return { asked: asked.state, state: part.state, text: textOf(chat.lastMessage) };
    });
  }
}

await check("image", async () => {
  const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
  const file = { type: "file", mediaType: "image/png", url: `data:image/png;base64,${pixel}` };
  const chat = chatWith("agent-ada");
  await chat.sendMessage({ parts: [{ type: "text", text: "See" }, file] });
  const requests = await (await fetch(`${provider}/_requests`)).json();
  const last = requests.at(-1).body.messages.at(-1).content;
  return { text: textOf(chat.lastMessage), kinds: last.map((part) => part.type) };
});

await check("refused", async () => {
  const chat = chatWith("agent-nobody");
  await chat.sendMessage({ text: "Hi" });
  return { status: chat.status, message: chat.error.message };
});

await check("broken", async () => {
  await script({ faults: [{ fault: "reset_at_token", times: 1, at: 2 }] });
  const chat = chatWith("agent-ada");
  await chat.sendMessage({ text: "One" });
  const { status, error } = chat;
  await chat.regenerate();
  return { status, message: error.message, again: chat.messages.map(textOf) };
});

await check("resume", async () => {
  await script({ chat: { token_delay_seconds: 0.05 } });
  const chat = chatWith("agent-ada");
  const sending = chat.sendMessage({ text: "Hi" });
  await until(() => chat.messages.length === 2 && textOf(chat.lastMessage) !== "");
  const other = chatWith("agent-ada", { id: chat.id, messages: chat.messages.slice(0, 1) });
  if (is5) other.messages = chat.messages.slice(0, 1);
  await other.resumeStream();
  await sending;
  await script({ chat: { token_delay_seconds: 0 } });
  return { same: JSON.stringify(other.lastMessage) === JSON.stringify(chat.lastMessage), text: textOf(other.lastMessage) };
});

await check("stop", async () => {
  await script({ chat: { token_delay_seconds: 0.2 } });
  const chat = chatWith("agent-ada");
  const sending = chat.sendMessage({ text: "Hi" });
  await until(() => chat.messages.length === 2 && textOf(chat.lastMessage) !== "");
  const stopped = await fetch(`${server}/api/chat/${chat.id}/stream`, { method: "DELETE" });
  await sending;
  const aborted = await lastRequestIsAborted();
  await script({ chat: { token_delay_seconds: 0 } });
  return { stopped: stopped.status, status: chat.status, aborted };
});

print();
