// Uses the types that openapi-typescript generates; it is compiled and never run.
import type { components, operations, paths } from "./schema.js";

type Schemas = components["schemas"];
type Problem = operations["send_text_message"]["responses"][429]["content"]["application/problem+json"];
type Page = paths["/sessions"]["get"]["responses"][200];

const agent: Schemas["AgentCreate"] = { name: "Ada" };
const change: Schemas["AgentUpdate"] = { voice: null };
const rename: Schemas["SessionUpdate"] = { title: "Trip" };
const message: operations["send_text_message"]["requestBody"]["content"]["application/json"] = {
  session_id: "01900000-0000-7000-8000-000000000001",
  content: "Hi",
  on_busy: "interrupt",
};
// @ts-expect-error: a misspelt field
const misspelt: Schemas["AgentCreate"] = { name: "Ada", instructions: "Be brief." };
// @ts-expect-error: no such policy
const policy: Schemas["BusyPolicy"] = "wait";

export function summary(reply: Schemas["ReplyRead"], turn: Schemas["TurnWithMessage"]): string {
  const cost: number | null = reply.usage.cost_usd;
  const ended: boolean = turn.status === "completed" || turn.status === "failed";
  return `${reply.content} ${cost ?? "?"} ${ended} ${turn.error?.code ?? ""}`;
}

export function explain(problem: Problem, retryAfter: number | undefined): string {
  const fields: string[] = (problem.errors ?? []).map((field) => field.loc.join("."));
  return `${problem.code} ${problem.turn_id ?? ""} ${fields.join()} ${retryAfter ?? 0}`;
}

export function nameOf(event: operations["follow_turn"]["responses"][200]["content"]["text/event-stream"]): string {
  if (event.event === "output_text.delta") {
    const data: Schemas["OutputTextDeltaEventData"] = JSON.parse(event.data);
    return data.delta;
  }
  return event.event;
}

export function nextPage(page: Page): string | undefined {
  const rows: Schemas["SessionRead"][] = page.content["application/json"];
  return rows.length ? page.headers.Link : undefined;
}

export const used = [agent, change, rename, message, misspelt, policy];
