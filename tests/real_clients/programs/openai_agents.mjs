// What users of the Agents SDK for Node do, with chat completions.
import { Agent, run, setDefaultOpenAIClient, setOpenAIAPI, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { check, lastRequestIsAborted, print, script, server } from "./checks.mjs";

setDefaultOpenAIClient(new OpenAI({ baseURL: `${server}/v1`, apiKey: "none", maxRetries: 0 }));
setOpenAIAPI("chat_completions");
setTracingDisabled(true);
const ada = new Agent({ name: "Ada", instructions: "Be brief.", model: "agent-ada" });

await check("three turns", async () => {
  let history = [];
  const texts = [];
  for (const content of ["One", "Two", "Three"]) {
    const result = await run(ada, [...history, { role: "user", content }]);
    history = result.history;
    texts.push(result.finalOutput);
  }
  return texts;
});

await check("stream", async () => {
  await script({ chat: { token_delay_seconds: 0.03 } });
  const stream = await run(ada, "Hi", { stream: true });
  let pieces = 0;
  for await (const _ of stream.toTextStream()) pieces++;
  await stream.completed;
  await script({ chat: { token_delay_seconds: 0 } });
  return { several: pieces > 1, text: stream.finalOutput };
});

await check("tools", async () => {
  await script({ chat: { calls: [["weather", '{"city": "Bern"}']] } });
  const asked = [];
  const weather = tool({
    name: "weather",
    description: "The weather of a city.",
    parameters: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return "sunny";
    },
  });
  const result = await run(new Agent({ name: "Ada", model: "agent-ada", tools: [weather] }), "Weather?");
  await script({ chat: { calls: [] } });
  return { asked, text: result.finalOutput };
});

await check("typed", async () => {
  const outputType = z.object({ city: z.string(), tickets: z.number().int() });
  const result = await run(new Agent({ name: "Ada", model: "agent-ada", outputType }), "JSON please");
  return result.finalOutput;
});

await check("refused", async () => {
  const error = await run(new Agent({ name: "X", model: "agent-nobody" }), "Hi").catch((each) => each);
  return { status: error.status, code: error.code };
});

await check("broken", async () => {
  await script({ faults: [{ fault: "reset_at_token", times: 1, at: 2 }] });
  const stream = await run(ada, "Hi", { stream: true });
  try {
    for await (const _ of stream.toTextStream());
    await stream.completed;
    return "no error";
  } catch (error) {
    return { code: error.code ?? error.error?.code ?? error.message };
  }
});

await check("stop", async () => {
  await script({ chat: { token_delay_seconds: 0.2 } });
  const abort = new AbortController();
  try {
    const stream = await run(ada, "Hi", { stream: true, signal: abort.signal });
    for await (const _ of stream.toTextStream()) abort.abort();
    await stream.completed;
  } catch {}
  const aborted = await lastRequestIsAborted();
  await script({ chat: { token_delay_seconds: 0 } });
  return aborted;
});

print();
