/** MCP servers, whose definitions a person accepts before a model sees them; and secrets, which can be written and never read. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, page, post, problemOf, put, remove } from "../lib/api.js";
import { pretty } from "../lib/calls.js";
import { exactly, when } from "../lib/format.js";
import { html } from "../lib/html.js";
import { ask, Dialog, Empty, Icon, IconButton, notify, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { headersOf, linesOf } from "./tools.js";

/** A list that is read at once and after changes; a problem of either is shown. @template T @param {() => Promise<T[]>} read */
function useRows(read) {
  const rows = useSignal(/** @type {T[] | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const load = async () => {
    try { rows.value = await read(); problem.value = null; } catch (error) { problem.value = problemOf(error); }
  };
  const act = async (/** @type {() => Promise<void>} */ work) => {
    try { await work(); await load(); } catch (error) { notify(problemOf(error).message, "bad"); }
  };
  useEffect(() => { load(); }, []);
  return { rows, problem, load, act };
}

export function Servers() {
  const { rows, problem, load, act } = useRows(async () => Promise.all((await page("mcp-servers", { limit: 100 })).rows.map(({ id }) => /** @type {Promise<McpServer>} */ (get(`mcp-servers/${id}`)))));
  const form = useSignal(/** @type {{ server?: McpServer } | null} */ (null)); // `{server}` that is changed, or none for a new one
  const refresh = (/** @type {McpServer} */ server) => act(async () => {
    const { added, changed, removed } = await post(`mcp-servers/${server.id}/refresh`, {}, null);
    notify(t.tools.listed(added.length, changed.length, removed.length));
  });
  const drop = (/** @type {McpServer} */ server) => act(async () => { if (await ask(t.keys.remove, t.tools.dropAsk(server.name), t.keys.remove)) await remove(`mcp-servers/${server.id}`); });
  /** @param {McpServer} server @param {McpServer["tools"]} tools */
  const accept = (server, tools) => act(async () => {
    for (const tool of tools) await post(`mcp-servers/${server.id}/tools/${encodeURIComponent(tool.name)}/accept`, { sha256: tool.sha256 }, null);
  });
  return html`<p class="lead">${t.tools.serversLead}</p>
    <div class="tools"><button type="button" class="button primary" onClick=${() => { form.value = {}; }}><${Icon} name="plus" size=${16} />${t.tools.addServer}</button></div>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${load} />`}
    ${!rows.value && !problem.value && html`<p class="loading">${t.loading}</p>`}
    ${rows.value?.length === 0 && html`<${Empty} icon="tool" title=${t.tools.noServers} />`}
    ${(rows.value ?? []).map((server) => {
      const wanted = server.tools.filter(({ status }) => status === "pending" || status === "changed");
      return html`<section class="server" key=${server.id} aria-label=${server.name}>
        <header><div class="row-main"><h2>${server.name}</h2><small title=${exactly(server.listed_at)}>${[server.url ?? server.program, `${server.server_name} ${server.server_version}`, server.protocol_version].join(" · ")}</small></div>
          ${wanted.length > 1 && html`<button type="button" class="button" onClick=${() => accept(server, wanted)}>${t.tools.acceptAll(wanted.length)}</button>`}
          <${IconButton} name="edit" label=${`${t.tools.editServer}: ${server.name}`} onClick=${() => { form.value = { server }; }} /><${IconButton} name="again" label=${`${t.tools.refresh}: ${server.name}`} onClick=${() => refresh(server)} /><${IconButton} name="trash" label=${`${t.keys.remove}: ${server.name}`} onClick=${() => drop(server)} /></header>
        <ul>${server.tools.map((tool) => html`<li key=${tool.name} class="call" data-status=${tool.status}><details><summary><code>${tool.name}</code><span class="call-brief">${tool.description}</span><span class="pill" data-status=${tool.status}>${t.tools.statuses[tool.status]}</span></summary>
          <div class="call-body"><p>${tool.description}</p>${tool.problem && html`<p class="state" data-kind="bad">${tool.problem}</p>`}
            <figure class="call-text"><figcaption>${t.tools.parameters}</figcaption><pre tabindex="0" role="group" aria-label=${`${tool.name}: ${t.tools.parameters}`}>${pretty(JSON.stringify(tool.parameters))}</pre></figure>
            <p class="quiet">${[Object.entries(tool.hints).map(([hint, is]) => `${hint}: ${is}`).join(", "), `SHA-256 ${tool.sha256.slice(0, 16)}`].filter(Boolean).join(" · ")}</p>
            ${wanted.includes(tool) && html`<button type="button" class="button primary" aria-label=${`${t.tools.accept} ${tool.name}`} onClick=${() => accept(server, [tool])}>${t.tools.accept}</button>`}${tool.tool_id && html`<a href=${`#/tools/${tool.tool_id}`}>${tool.tool_name}</a>`}</div></details></li>`)}</ul></section>`;
    })}
    ${form.value && html`<${ServerForm} server=${form.value.server} onDone=${(/** @type {boolean} */ isSaved) => { form.value = null; if (isSaved) load(); }} />`}`;
}

/** What is known of a server and may be changed, or a new one. Headers have names of secrets, never their values. @param {{ server?: McpServer, onDone: (isSaved: boolean) => void }} props */
function ServerForm({ server, onDone }) {
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const busy = useSignal(false);
  const save = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const { elements } = event.target;
    const body = { effect: elements.effect.value, auto_accept: elements.auto.checked, timeout_seconds: Number(elements.timeout.value), ...(elements.url && { url: elements.url.value, headers: headersOf(elements.headers.value) }) };
    busy.value = true;
    try {
      await (server ? put(`mcp-servers/${server.id}`, body, null) : post("mcp-servers", { name: elements.name.value, ...body }));
      onDone(true);
    } catch (error) { problem.value = problemOf(error); }
    busy.value = false;
  };
  const effect = server?.effect ?? "once";
  return html`<${Dialog} title=${server ? server.name : t.tools.addServer} onClose=${() => onDone(false)}><form onSubmit=${save}>
    ${!server && html`<label class="field">${t.agents.name}<input class="input" name="name" required maxlength="32" pattern="[a-zA-Z0-9_\\-]+" autofocus /></label>`}
    ${!server?.program && html`<label class="field">URL<input class="input" name="url" required type="url" placeholder="https://mcp.example.com/mcp" value=${server?.url ?? ""} /></label>
    <label class="field">${t.tools.headers}<textarea class="input code-input" name="headers" rows="2" spellcheck=${false} placeholder="Authorization: Bearer {{secrets.SHOP_KEY}}">${linesOf(server?.headers)}</textarea><small>${t.tools.serverHeadersHelp}</small></label>`}
    <div class="fields"><label class="field">${t.tools.effect}<select class="input" name="effect">${["once", "idempotent", "read"].map((one) => html`<option key=${one} value=${one} selected=${one === effect}>${t.calls.effects[one]}</option>`)}</select></label>
      <label class="field">${t.tools.timeout}<input class="input" type="number" name="timeout" required min="1" max="300" step="any" value=${server?.timeout_seconds ?? 30} /></label></div>
    <label class="check"><input type="checkbox" name="auto" checked=${server?.auto_accept} />${t.tools.auto}</label>
    ${problem.value && html`<p class="note" data-kind="bad" role="alert">${problem.value.message}</p>`}
    <footer><button class="button primary" disabled=${busy.value}>${server ? t.tools.saveServer : t.tools.connect}</button></footer></form><//>`;
}

export function Secrets() {
  const { rows, problem, load, act } = useRows(async () => /** @type {Secret[]} */ ((await page("secrets", { limit: 100 })).rows));
  const wrong = useSignal(/** @type {Problem | null} */ (null));
  const store = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const { target: form } = event;
    const { name, value, hosts } = form.elements;
    try {
      await post("secrets", { name: name.value, value: value.value, hosts: hosts.value.split(/[\s,]+/).filter(Boolean) }, null);
      wrong.value = null;
      form.reset();
      await load();
    } catch (error) { wrong.value = problemOf(error); }
  };
  const drop = (/** @type {Secret} */ { name }) => act(async () => { if (await ask(t.keys.remove, t.tools.dropSecret(name), t.keys.remove)) await remove(`secrets/${name}`); });
  return html`<p class="lead">${t.tools.secretsLead}</p>
    <form class="secret-form" onSubmit=${store} autocomplete="off">
      <label class="field">${t.agents.name}<input class="input" name="name" required maxlength="64" pattern="[A-Za-z][A-Za-z0-9_]*" placeholder="SHOP_KEY" /></label>
      <label class="field">${t.tools.value}<input class="input" name="value" type="password" required minlength="8" autocomplete="new-password" /></label>
      <label class="field">${t.tools.hosts}<input class="input" name="hosts" required placeholder="api.example.com" /></label>
      <button class="button primary">${t.tools.store}</button></form>
    ${wrong.value && html`<p class="note" data-kind="bad" role="alert">${wrong.value.message} ${wrong.value.fields.map((field) => field.msg).join(" ")}</p>`}
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${load} />`}
    ${!rows.value && !problem.value && html`<p class="loading">${t.loading}</p>`}
    ${rows.value?.length === 0 && html`<${Empty} icon="keys" title=${t.tools.noSecrets} />`}
    <ul class="rows">${(rows.value ?? []).map((secret) => html`<li key=${secret.name} class="row"><${Icon} name="keys" /><span class="row-main"><strong><code>${`{{secrets.${secret.name}}}`}</code></strong><small>${secret.hosts.join(", ")} · ${t.tools.usedBy(secret.used_by.length)}</small></span><time title=${exactly(secret.updated_at)}>${when(secret.updated_at)}</time>
      <${IconButton} name="trash" label=${`${t.keys.remove}: ${secret.name}`} onClick=${() => drop(secret)} /></li>`)}</ul>`;
}
