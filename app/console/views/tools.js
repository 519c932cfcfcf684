/** Tools of the workspace: the list, one with its definition and a trial, the import of an API, MCP servers and secrets. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, page, post, problemOf, put, remove } from "../lib/api.js";
import { duration } from "../lib/format.js";
import { html } from "../lib/html.js";
import { go } from "../lib/store.js";
import { ask, Choice, CopyButton, Dialog, Empty, Icon, Menu, notify, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { Secrets, Servers } from "./tool-servers.js";

const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"];
const EFFECTS = ["read", "idempotent", "once"];
const APPROVALS = ["never", "after_untrusted", "always"];

/** @param {{ id?: string, query: Record<string, string> }} props */
export function Tools({ id, query }) {
  const tab = query.tab ?? "tools";
  useEffect(() => { document.title = `${t.tools.title} · ${t.product}`; }, [id]);
  if (id) return html`<${Tool} key=${id} id=${id} kind=${query.kind ?? "http"} />`;
  const Shown = tab === "servers" ? Servers : tab === "secrets" ? Secrets : List;
  return html`<main class="page" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.tools.title}</h1><span class="grow"></span>
      <${Choice} label=${t.tools.title} value=${tab} options=${{ tools: t.tools.title, servers: t.tools.servers, secrets: t.tools.secrets }} onChange=${(key) => go(key === "tools" ? "tools" : `tools?tab=${key}`)} /></header>
    <${Shown} /></main>`;
}

function List() {
  const tools = useSignal(/** @type {Tool[] | null} */ (null));
  const next = useSignal(/** @type {string | undefined} */ (undefined));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const importing = useSignal(false);
  const load = async (path = "tools") => {
    try {
      const { rows, next: more } = await page(path, path === "tools" ? { limit: 100 } : undefined);
      tools.value = path === "tools" ? rows : [...(tools.value ?? []), ...rows];
      next.value = more;
      problem.value = null;
    } catch (error) { problem.value = problemOf(error); }
  };
  useEffect(() => { load(); }, []);
  return html`<p class="lead">${t.tools.lead}</p>
    <div class="tools"><a class="button primary" href="#/tools/new"><${Icon} name="plus" size=${16} />${t.tools.fresh}</a><a class="button" href="#/tools/new?kind=client">${t.tools.freshClient}</a><button type="button" class="button" onClick=${() => { importing.value = true; }}>${t.tools.import}</button></div>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${() => load()} />`}
    ${!tools.value && !problem.value && html`<p class="loading">${t.loading}</p>`}
    ${tools.value?.length === 0 && html`<${Empty} icon="tool" title=${t.tools.empty}>${t.tools.emptyLead}<//>`}
    <ul class="rows">${(tools.value ?? []).map((tool) => html`<li key=${tool.id}><a class="row" href=${`#/tools/${tool.id}`}><${Icon} name="tool" />
      <span class="row-main"><strong><code>${tool.name}</code></strong><small>${tool.description}</small></span>
      <span class="pill wide-only">${t.calls.effects[tool.effect]}</span><span class="pill">${t.calls.kinds[tool.kind]}</span></a></li>`)}</ul>
    ${next.value && html`<button type="button" class="button" onClick=${() => load(next.value)}>${t.more}</button>`}
    ${importing.value && html`<${Import} onDone=${(/** @type {boolean} */ made) => { importing.value = false; if (made) load(); }} />`}`;
}

/** Headers as lines `Name: value`. @param {Record<string, string> | null | undefined} headers */
export const linesOf = (headers) => Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}`).join("\n");
/** @param {string} lines */
export const headersOf = (lines) => Object.fromEntries(lines.split("\n").filter((line) => line.trim()).map((line) => { const at = line.indexOf(":"); return at < 0 ? [line.trim(), ""] : [line.slice(0, at).trim(), line.slice(at + 1).trim()]; }));
/** @param {unknown} value */
const jsonOf = (value) => (value === null || value === undefined ? "" : JSON.stringify(value, null, 2));

/** JSON of a field, `empty` where nothing is written. Marks the field and throws `SyntaxError` where it is none. @param {HTMLFormElement} form @param {string} name @param {unknown} empty */
function parsed(form, name, empty = null) {
  const area = /** @type {HTMLTextAreaElement} */ (form.elements.namedItem(name));
  area.setCustomValidity("");
  if (!area.value.trim()) return empty;
  try { return JSON.parse(area.value); } catch (error) {
    area.setCustomValidity(t.tools.notJson);
    area.reportValidity();
    throw error;
  }
}

/** @param {{ id: string, kind: string }} props */
function Tool({ id, kind: wanted }) {
  const isNew = id === "new";
  const tool = useSignal(/** @type {any} */ (isNew ? { kind: wanted, parameters: { type: "object", properties: {}, additionalProperties: false }, http: { method: "GET", url: "", headers: {} }, approval_by: "operator", timeout_seconds: 30, trusted: true } : null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const secret = useSignal(/** @type {Schemas["ToolWithSecret"] | null} */ (null));
  const form = useRef(/** @type {any} */ (null));
  useEffect(() => { if (!isNew) get(`tools/${id}`).then((/** @type {Tool} */ read) => { tool.value = read; document.title = `${read.name} · ${t.product}`; }, (error) => { problem.value = error; }); }, [id]);
  const known = tool.value;
  if (!known) return html`<main class="page narrow" id="content">${problem.value ? html`<${Trouble} problem=${problem.value} />` : html`<p class="loading">${t.loading}</p>`}</main>`;
  const { kind } = known;
  const save = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const value = (/** @type {string} */ name) => form.current.elements[name].value;
    try {
      /** @type {Record<string, unknown>} */
      const body = { effect: value("effect") || null, approval: value("approval") || null, approval_by: value("approval_by"), price_usd: value("price_usd") === "" ? null : Number(value("price_usd")), trusted: form.current.elements.trusted.checked };
      if (kind !== "mcp") Object.assign(body, { name: value("name"), description: value("description"), parameters: parsed(form.current, "parameters", { type: "object" }) });
      if (kind === "client") body.output_schema = parsed(form.current, "output_schema");
      else body.timeout_seconds = Number(value("timeout_seconds"));
      if (kind === "http") body.http = { method: value("method"), url: value("url"), headers: headersOf(value("headers")), query: known.http?.query ?? {}, body: parsed(form.current, "body"), select: value("select") || null };
      problem.value = null;
      if (isNew) {
        const made = await post("tools", { kind, ...body });
        if (made.signing_secret && kind === "http") secret.value = made; else go(`tools/${made.id}`);
      } else {
        tool.value = await put(`tools/${id}`, body, null);
        notify(t.agents.saved(tool.value.version));
      }
    } catch (error) { if (!(error instanceof SyntaxError)) problem.value = problemOf(error); }
  };
  const archive = async () => {
    if (!(await ask(t.agents.archive, t.tools.archiveAsk(known.name), t.agents.archive))) return;
    try { await remove(`tools/${id}`); go("tools"); } catch (error) { problem.value = problemOf(error); }
  };
  const fixed = kind === "mcp";
  const made = secret.value; // with its signing secret, which is shown once
  /** @param {string} name @param {string} label @param {string} value @param {string} help */
  const area = (name, label, value, help, rows = 6) => html`<label class="field">${label}<textarea class="input code-input" name=${name} rows=${rows} spellcheck=${false} onInput=${(event) => event.target.setCustomValidity("")}>${value}</textarea>${help && html`<small>${help}</small>`}</label>`;
  /** @param {string} name @param {string} label @param {string} value @param {string[]} options @param {Record<string, string>} [names] @param {string | false} [empty] */
  const select = (name, label, value, options, names, empty) => html`<label class="field">${label}<select class="input" name=${name}>${empty && html`<option value="">${empty}</option>`}${options.map((one) => html`<option key=${one} value=${one} selected=${one === value}>${names?.[one] ?? one}</option>`)}</select></label>`;
  return html`<main class="page narrow" id="content">
    <p class="crumb"><a href="#/tools">${t.tools.title}</a></p>
    <header class="page-head"><h1 tabindex="-1">${isNew ? t.tools.fresh : known.name}</h1>${!isNew && html`<span class="pill">v${known.version}</span>`}<span class="pill">${t.calls.kinds[kind]}</span><span class="grow"></span>
      ${!isNew && html`<${Menu} items=${[{ icon: "trash", label: t.agents.archive, danger: true, act: archive }]} />`}</header>
    <form ref=${form} class="tool-form" onSubmit=${save}>
      ${!fixed && html`<label class="field">${t.agents.name}<input class="input" name="name" required maxlength="64" pattern="[a-zA-Z0-9_\\-]+" value=${known.name ?? ""} placeholder="get_order" /><small>${t.tools.nameHelp}</small></label>
      <label class="field">${t.tools.description}<textarea class="input" name="description" rows="2" required maxlength="1024">${known.description ?? ""}</textarea><small>${t.tools.descriptionHelp}</small></label>`}
      ${fixed && html`<p class="lead">${known.description}</p>`}
      ${kind === "http" && html`<div class="http-line">${select("method", t.tools.method, known.http.method, METHODS)}<label class="field">URL<input class="input" name="url" required maxlength="2048" value=${known.http.url} placeholder="https://api.example.com/orders/{number}" /></label></div>
      ${area("headers", t.tools.headers, linesOf(known.http.headers), t.tools.headersHelp, 2)}`}
      ${!fixed && area("parameters", t.tools.parameters, jsonOf(known.parameters), t.tools.parametersHelp)}
      ${kind === "http" && html`<details><summary>${t.tools.further}</summary><div class="tool-form">${area("body", t.tools.body, jsonOf(known.http.body), t.tools.bodyHelp, 3)}<label class="field">${t.tools.select}<input class="input" name="select" value=${known.http.select ?? ""} placeholder="/data/order" /></label></div></details>`}
      ${kind === "client" && area("output_schema", t.tools.outputSchema, jsonOf(known.output_schema), "", 3)}
      <div class="fields">${select("effect", t.tools.effect, known.effect, EFFECTS, t.calls.effects, isNew && t.tools.byMethod)}${select("approval", t.tools.approval, known.approval, APPROVALS, t.tools.approvals, isNew && t.tools.byEffect)}${select("approval_by", t.tools.by, known.approval_by, ["operator", "user"], t.tools.who)}
        ${kind !== "client" && html`<label class="field">${t.tools.timeout}<input class="input" type="number" name="timeout_seconds" min="1" max="300" step="any" value=${known.timeout_seconds} /></label>`}<label class="field">${t.tools.price}<input class="input" type="number" name="price_usd" min="0" step="any" value=${known.price_usd ?? ""} /></label></div>
      <label class="check"><input type="checkbox" name="trusted" checked=${known.trusted} />${t.tools.trusted}</label>
      ${problem.value && html`<div class="note" data-kind="bad" role="alert"><span>${problem.value.message}${problem.value.fields.map((field) => html` <code>${field.loc.slice(1).join(".")}</code> ${field.msg}`)}</span></div>`}
      <footer><button class="button primary">${isNew ? t.tools.make : t.agents.save(known.version + 1)}</button></footer>
    </form>
    ${!isNew && kind === "http" && html`<${Trial} tool=${known} />`}
    ${made && html`<${Dialog} title=${made.name} onClose=${() => go(`tools/${made.id}`)}><p>${t.tools.signing}</p><div class="secret"><code>${made.signing_secret}</code><${CopyButton} text=${made.signing_secret ?? ""} /></div>
      <footer><button type="button" class="button primary" onClick=${() => go(`tools/${made.id}`)}>${t.keys.stored}</button></footer><//>`}</main>`;
}

/** One call outside of a turn: the request as it was sent, and the result as a model would see it. @param {{ tool: Tool }} props */
function Trial({ tool }) {
  const result = useSignal(/** @type {Schemas["ToolTestRead"] | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const run = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const { target: form } = event;
    try {
      const args = parsed(form, "arguments", {});
      if (tool.effect === "once" && !(await ask(t.tools.try, t.tools.tryAsk(tool.name), t.tools.try))) return;
      problem.value = null;
      result.value = await post(`tools/${tool.id}/test`, { arguments: args, confirm: tool.effect === "once" }, null);
    } catch (error) { if (!(error instanceof SyntaxError)) problem.value = problemOf(error); }
  };
  const shown = result.value;
  return html`<section class="trial-call"><h2>${t.tools.try}</h2><p class="quiet">${t.tools.tryLead}</p>
    <form class="tool-form" onSubmit=${run}><label class="field">${t.calls.arguments}<textarea class="input code-input" name="arguments" rows="2" spellcheck=${false} onInput=${(event) => event.target.setCustomValidity("")}>{}</textarea></label><footer><button class="button">${t.tools.try}</button></footer></form>
    ${problem.value && html`<p class="note" data-kind="bad" role="alert">${problem.value.message}</p>`}
    ${shown && html`<div class="call" role="status" data-status=${shown.status}><div class="call-body"><p><span class="pill" data-status=${shown.status}>${t.calls.status[shown.status]}</span> ${shown.http_status ?? ""} ${duration(shown.duration_ms)}</p>
      ${shown.error && html`<p class="state" data-kind="bad"><code>${shown.error.code}</code> ${shown.error.detail}</p>`}
      ${shown.request && html`<figure class="call-text"><figcaption>${t.tools.sent}</figcaption><pre tabindex="0" role="group" aria-label=${t.tools.sent}>${`${shown.request.method} ${shown.request.url}\n${linesOf(shown.request.headers)}${shown.request.body ? `\n\n${shown.request.body}` : ""}`}</pre></figure>`}
      <figure class="call-text"><figcaption>${t.calls.result}</figcaption><pre tabindex="0" role="group" aria-label=${t.calls.result}>${shown.result}</pre></figure></div></div>`}</section>`;
}

/** Tools of an OpenAPI document: what would be made is shown, and chosen from, first. @param {{ onDone: (isMade: boolean) => void }} props */
function Import({ onDone }) {
  const found = useSignal(/** @type {Schemas["ImportedTool"][] | null} */ (null));
  const chosen = useSignal(/** @type {Set<string>} */ (new Set()));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const given = useRef(/** @type {any} */ (null));
  const area = useRef(/** @type {any} */ (null));
  const look = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const { target: form } = event;
    try {
      given.current = { openapi: parsed(form, "openapi"), ...(form.elements.base_url.value && { base_url: form.elements.base_url.value }), headers: headersOf(form.elements.headers.value) };
      problem.value = null;
      const { tools } = /** @type {Schemas["ToolImportRead"]} */ (await post("tools/import", { ...given.current, dry_run: true }, null));
      found.value = tools;
      chosen.value = new Set(tools.filter((one) => one.definition).map((one) => one.operation_id));
    } catch (error) { if (!(error instanceof SyntaxError)) problem.value = problemOf(error); }
  };
  const make = async () => {
    try {
      const { tools } = /** @type {Schemas["ToolImportRead"]} */ (await post("tools/import", { ...given.current, include: [...chosen.value], dry_run: false }));
      notify(t.tools.imported(tools.filter((one) => one.tool_id).length));
      onDone(true);
    } catch (error) { problem.value = problemOf(error); }
  };
  const toggle = (/** @type {string} */ id) => { const next = new Set(chosen.value); if (!next.delete(id)) next.add(id); chosen.value = next; };
  const read = async (/** @type {Submitted} */ event) => { const [file] = event.target.files; if (file) area.current.value = await file.text(); };
  return html`<${Dialog} title=${t.tools.import} wide onClose=${() => onDone(false)}>
    ${!found.value ? html`<form onSubmit=${look}>
      <label class="field">${t.tools.document}<textarea ref=${area} class="input code-input" name="openapi" rows="6" required spellcheck=${false} onInput=${(event) => event.target.setCustomValidity("")}></textarea><small>${t.tools.documentHelp}</small></label>
      <label class="field">${t.tools.file}<input class="input" type="file" accept="application/json,.json" onChange=${read} /></label>
      <label class="field">${t.tools.base}<input class="input" name="base_url" placeholder=${t.tools.baseHint} /></label>
      <label class="field">${t.tools.headers}<textarea class="input code-input" name="headers" rows="2" placeholder="Authorization: Bearer {{secrets.SHOP_KEY}}"></textarea></label>
      <footer><button class="button primary">${t.tools.look}</button></footer></form>`
    : html`<ul class="found">${found.value.map((one) => html`<li key=${one.operation_id}><label class="check"><input type="checkbox" disabled=${!one.definition} checked=${chosen.value.has(one.operation_id)} onChange=${() => toggle(one.operation_id)} /><span class="row-main"><code>${one.operation_id}</code><small data-wrong=${!one.definition}>${one.problem ?? one.definition?.description}</small></span></label></li>`)}</ul>
      <footer><button type="button" class="button" onClick=${() => { found.value = null; }}>${t.back}</button><button type="button" class="button primary" disabled=${!chosen.value.size} onClick=${make}>${t.tools.importN(chosen.value.size)}</button></footer>`}
    ${problem.value && html`<p class="note" data-kind="bad" role="alert">${problem.value.message}</p>`}<//>`;
}
