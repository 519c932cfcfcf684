/** The inbox: every call of this workspace that waits for somebody, the newest first. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { page, problemOf } from "../lib/api.js";
import { callOf, WAITING } from "../lib/calls.js";
import { exactly, when } from "../lib/format.js";
import { html } from "../lib/html.js";
import { agentById, waiting } from "../lib/store.js";
import { Empty, Icon, Mark, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { Action } from "./calls.js";

const LOOK_MS = 5000;

export function Inbox() {
  const calls = useSignal(/** @type {Call[] | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const load = async () => {
    try {
      const lists = await Promise.all(WAITING.map((status) => page("tool-calls", { status, limit: 100 })));
      const found = lists.flatMap(({ rows }) => /** @type {ToolCallRow[]} */ (rows)).toSorted((one, other) => other.created_at.localeCompare(one.created_at)).map((row) => callOf(row));
      calls.value = found;
      waiting.value = found.filter((call) => call.status === "awaiting_approval").length;
      problem.value = null;
    } catch (error) { problem.value = problemOf(error); }
  };
  useEffect(() => {
    document.title = `${t.inbox.title} · ${t.product}`;
    load();
    const timer = setInterval(() => { if (!document.hidden) load(); }, LOOK_MS);
    return () => clearInterval(timer);
  }, []);
  return html`<main class="page narrow" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.inbox.title}</h1><span role="status" class="quiet">${calls.value && t.inbox.count(calls.value.length)}</span></header>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${load} />`}
    ${!calls.value && !problem.value && html`<p class="loading">${t.loading}</p>`}
    ${calls.value?.length === 0 && html`<${Empty} icon="inbox" title=${t.inbox.empty}>${t.inbox.emptyLead}<//>`}
    <ul class="inbox">${(calls.value ?? []).map((call) => html`<li key=${call.id} class="call" data-status=${call.status}>
      <header><${Mark} id=${call.agent_id} size=${24} /><strong>${agentById.value.get(call.agent_id ?? "")?.name ?? ""}</strong><code>${call.name}</code><span class="grow"></span>
        <a href=${`#/chat/${call.session_id}`}>${t.inbox.open}<${Icon} name="out" size=${16} /></a><time title=${exactly(call.created_at ?? "")}>${when(call.created_at ?? "")}</time></header>
      <${Action} call=${call} onDone=${load} /></li>`)}</ul></main>`;
}
