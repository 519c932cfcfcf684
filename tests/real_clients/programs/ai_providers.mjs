// What users of the AI SDK do with OpenAI's provider (chat and responses) and the compatible one.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { check, lastRequestIsAborted, print, results, script, server } from "./checks.mjs";

const openai = createOpenAI({ baseURL: `${server}/v1`, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "platform", baseURL: `${server}/v1`, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
});
const weather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city}`,
});
const PROVIDERS = {
  chat: { model: (name) => openai.chat(name), more: {} },
  responses: { model: (name) => openai.responses(name), more: { providerOptions: { openai: { store: false } } } },
  compatible: { model: (name) => compatible(name), more: {} },
};

for (const [name, { model, more }] of Object.entries(PROVIDERS)) {
  const ada = model("agent-ada");
  const options = { model: ada, maxRetries: 0, ...more };

  await check(`${name}: three turns`, async () => {
    const messages = [];
    const texts = [];
    for (const content of ["One", "Two", "Three"]) {
      messages.push({ role: "user", content });
      const answer = await generateText({ ...options, messages });
      messages.push(...answer.response.messages);
      texts.push(answer.text);
    }
    return texts;
  });

  await check(`${name}: stream`, async () => {
    await script({ chat: { token_delay_seconds: 0.03 } });
    const stream = streamText({ ...options, prompt: "Hi" });
    let pieces = 0;
    for await (const _ of stream.textStream) pieces++;
    await script({ chat: { token_delay_seconds: 0 } });
    return { several: pieces > 1, usage: (await stream.usage).outputTokens > 0, reason: await stream.finishReason };
  });

  await check(`${name}: tools`, async () => {
    await script({ chat: { calls: [["weather", '{"city": "Bern"}']] } });
    const answer = await generateText({ ...options, prompt: "Weather?", tools: { weather }, stopWhen: stepCountIs(2) });
    await script({ chat: { calls: [] } });
    return { steps: answer.steps.length, result: answer.steps[0].toolResults[0].output, text: answer.text };
  });

  await check(`${name}: typed`, async () => {
    const schema = z.object({ city: z.string(), tickets: z.number().int() });
    const answer = await generateText({ ...options, prompt: "JSON please", output: Output.object({ schema }) });
    return answer.output;
  });

  await check(`${name}: refused`, async () => {
    const error = await generateText({ ...options, model: model("agent-nobody"), prompt: "Hi" }).catch((each) => each);
    return { status: error.statusCode, retries: error.isRetryable, sentence: error.message.endsWith(".") };
  });

  await check(`${name}: broken`, async () => {
    await script({ faults: [{ fault: "reset_at_token", times: 1, at: 2 }] });
    const errors = [];
    const stream = streamText({ ...options, prompt: "Hi", onError: ({ error }) => void errors.push(error) });
    let text = "";
    for await (const part of stream.fullStream) if (part.type === "text-delta") text += part.text;
    return { errors: errors.length, whole: text.startsWith("Answer 1 of") && text.endsWith("words.") };
  });

  await check(`${name}: stop`, async () => {
    await script({ chat: { token_delay_seconds: 0.2 } });
    const abort = new AbortController();
    const stream = streamText({ ...options, prompt: "Hi", abortSignal: abort.signal, onError() {} });
    for await (const part of stream.fullStream) if (part.type === "text-delta") abort.abort();
    const aborted = await lastRequestIsAborted();
    await script({ chat: { token_delay_seconds: 0 } });
    return aborted;
  });
}
print(results);
