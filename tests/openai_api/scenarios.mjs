// What users of the official Node SDK do, against a real server; prints what came as one JSON object.
import OpenAI from "openai";

const [baseURL] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const hi = [{ role: "user", content: "Hi" }];
const weather = {
  type: "function",
  function: { name: "weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};

const models = [];
for await (const model of client.models.list()) models.push(model.id);

const messages = [];
for (const content of ["One", "Two", "Three"]) {
  messages.push({ role: "user", content });
  const answer = await client.chat.completions.create({ model: "agent-ada", messages });
  messages.push(answer.choices[0].message);
}

let text = "";
let usage = null;
const stream = await client.chat.completions.create({
  model: "agent-ada",
  messages: hi,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const question = [{ role: "user", content: "Weather? TOOLS" }];
const streamed = await client.chat.completions
  .stream({ model: "agent-ada", messages: question, tools: [weather] })
  .finalChatCompletion();
const call = streamed.choices[0].message.tool_calls[0];
const answered = await client.chat.completions.create({
  model: "agent-ada",
  messages: [
    ...question,
    { role: "assistant", content: null, tool_calls: streamed.choices[0].message.tool_calls },
    { role: "tool", tool_call_id: call.id, content: "Sunny" },
  ],
  tools: [weather],
});

async function errorOf(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}
const unknown = await errorOf(client.chat.completions.create({ model: "gpt-5", messages: hi }));
const several = await errorOf(client.chat.completions.create({ model: "agent-ada", messages: hi, n: 2 }));
const missing = await errorOf(client.embeddings.create({ model: "agent-ada", input: "Hi" }));

const stopped = await client.chat.completions.create({ model: "agent-ada", messages: hi, stream: true });
for await (const chunk of stopped) {
  if (chunk.choices[0]?.delta?.content) break; // leaving the loop closes the stream
}

console.log(
  JSON.stringify({
    models,
    roles: messages.map((message) => message.role),
    text,
    usage: usage.total_tokens > 0,
    reason: streamed.choices[0].finish_reason,
    arguments: call.function.arguments,
    answered: answered.choices[0].message.content,
    errors: { unknown, several, missing },
  }),
);
