/** What an agent may do: tools and MCP servers with their approvals, and the limits of a turn. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { page, problemOf, put } from "../lib/api.js";
import { html } from "../lib/html.js";
import { loadAgents } from "../lib/store.js";
import { Empty, notify, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";

/** What holds where nothing is set. */
/** @type {ToolPolicy} */
const DEFAULTS = { max_steps: 8, max_calls: 32, max_parallel: 4, max_usd_per_turn: null, on_unknown: "fail", spoken_filler: null };
/** @type {Record<"max_steps" | "max_calls" | "max_usd_per_turn", [label: string, most: number]>} */
const LIMITS = { max_steps: [t.tools.maxSteps, 32], max_calls: [t.tools.maxCalls, 128], max_usd_per_turn: [t.tools.maxUsd, 1000] };

/** @param {string} path */
async function everything(path) {
  const all = [];
  for (let answer = await page(path, { limit: 100 }); ; answer = await page(answer.next)) {
    all.push(...answer.rows);
    if (!answer.next) return all;
  }
}

/** @typedef {{ tool_id?: string, mcp_server_id?: string, approval?: string | null, names?: string[] | null }} Given */
/** @param {Given} one */
const idOf = (one) => one.tool_id ?? one.mcp_server_id;

/** @param {{ agent: Agent }} props */
export function AgentTools({ agent }) {
  const known = useSignal(/** @type {{ tools: Tool[], servers: McpServer[] } | null} */ (null)); // tools that are no MCP server's, and servers
  const had = /** @type {Given[]} */ (agent.tools);
  const has = useSignal(had);
  const before = agent.tool_policy ?? DEFAULTS;
  const policy = useSignal(before);
  const problem = useSignal(/** @type {Problem | null} */ (null));
  useEffect(() => {
    Promise.all([everything("tools"), everything("mcp-servers")]).then(([tools, servers]) => { known.value = { tools: tools.filter(({ kind }) => kind !== "mcp"), servers }; }, (error) => { problem.value = error; });
  }, []);
  const dirty = has.value !== had || policy.value !== before;
  const ids = new Map(has.value.map((one) => [idOf(one), one]));
  const toggle = (/** @type {Given} */ one) => { has.value = ids.has(idOf(one)) ? has.value.filter((other) => idOf(other) !== idOf(one)) : [...has.value, one]; };
  /** @param {string | undefined} id @param {string | null} approval */
  const approve = (id, approval) => { has.value = has.value.map((one) => (idOf(one) === id ? { ...one, approval } : one)); };
  const save = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    problem.value = null;
    try {
      const { version } = await put(`agents/${agent.id}`, { tools: has.value, ...(policy.value !== before && { tool_policy: policy.value }) }, agent.version);
      await loadAgents();
      notify(t.agents.saved(version));
    } catch (caught) {
      const error = problemOf(caught);
      problem.value = error;
      if (error.code === "version-changed") await loadAgents();
    }
  };
  /** @param {Given} one @param {string} name @param {string} about */
  const row = (one, name, about) => {
    const id = idOf(one);
    return html`<li key=${id}><label class="check"><input type="checkbox" checked=${ids.has(id)} onChange=${() => toggle(one)} /><span class="row-main"><code>${name}</code><small title=${about}>${about}</small></span></label>
      ${ids.has(id) && html`<select class="input" aria-label=${t.tools.approvalOf(name)} value=${ids.get(id)?.approval ?? ""} onChange=${(event) => approve(id, event.target.value || null)}><option value="">${t.tools.asTool}</option>${Object.entries(t.tools.approvals).map(([key, label]) => html`<option key=${key} value=${key}>${label}</option>`)}</select>`}</li>`;
  };
  const limit = (/** @type {keyof typeof LIMITS} */ name) => html`<label class="field" key=${name}>${LIMITS[name][0]}<input class="input" type="number" min=${name === "max_usd_per_turn" ? undefined : 1} step=${name === "max_usd_per_turn" ? "any" : 1} max=${LIMITS[name][1]} value=${policy.value[name] ?? ""} onInput=${(event) => { policy.value = { ...policy.value, [name]: event.target.value === "" ? DEFAULTS[name] : Number(event.target.value) }; }} /></label>`;
  return html`<form class="editor" onSubmit=${save}><div class="editor-body agent-tools">
      ${problem.value && html`<${Trouble} problem=${problem.value} />`}
      ${!known.value && !problem.value && html`<p class="loading">${t.loading}</p>`}
      ${known.value && !known.value.tools.length && !known.value.servers.length && html`<${Empty} icon="tool" title=${t.tools.none}><a href="#/tools">${t.tools.title}</a><//>`}
      ${known.value && known.value.tools.length > 0 && html`<section><h2>${t.tools.ofAgent}</h2><ul>${known.value.tools.map((tool) => row({ tool_id: tool.id, approval: null }, tool.name, tool.description))}</ul></section>`}
      ${known.value && known.value.servers.length > 0 && html`<section><h2>${t.tools.servers}</h2><ul>${known.value.servers.map((server) => row({ mcp_server_id: server.id, approval: null }, server.name, ids.get(server.id)?.names?.join(", ") ?? t.tools.all))}</ul></section>`}
      ${known.value && html`<section><h2>${t.tools.policy}</h2><div class="fields">${Object.keys(LIMITS).map((name) => limit(/** @type {keyof typeof LIMITS} */ (name)))}
        <label class="field">${t.tools.onUnknown}<select class="input" value=${policy.value.on_unknown} onChange=${(event) => { policy.value = { ...policy.value, on_unknown: event.target.value }; }}>${Object.entries(t.tools.unknowns).map(([key, label]) => html`<option key=${key} value=${key}>${label}</option>`)}</select></label>
        <label class="field">${t.tools.filler}<input class="input" maxlength="200" value=${policy.value.spoken_filler ?? ""} onInput=${(event) => { policy.value = { ...policy.value, spoken_filler: event.target.value || null }; }} /></label></div></section>`}
    </div>
    <footer class="savebar" data-dirty=${dirty}><span class="grow"></span>${dirty && html`<button type="button" class="button" onClick=${() => { has.value = had; policy.value = before; }}>${t.agents.discard}</button>`}
      <button class="button primary" disabled=${!dirty}>${t.agents.save(agent.version + 1)}</button></footer></form>`;
}
