/** Keys for servers: made, shown once with ready snippets, rotated, revoked. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, post, problemOf, remove } from "../lib/api.js";
import { when } from "../lib/format.js";
import { html } from "../lib/html.js";
import { agents } from "../lib/store.js";
import { ask, Choice, CopyButton, Dialog, Empty, Icon, Menu, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";
import { CodeBlock } from "../lib/code.js";

/** @type {Record<string, string[]>} */
const SCOPES = {
  server: ["agents:read", "agents:write", "sessions:read", "sessions:write", "turns:read", "turns:write", "usage:read"],
  talk: ["agents:read", "sessions:read", "sessions:write", "turns:read", "turns:write"],
  read: ["agents:read", "sessions:read", "turns:read", "usage:read"],
};

/** @param {string} key @param {string} agent @returns {Record<string, [language: string, code: string]>} */
const snippets = (key, agent) => {
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const body = `{"agent_id": "${agent}"}`;
  return {
    curl: ["bash", `SESSION=$(curl -s ${base}/sessions -H "Authorization: Bearer ${key}" \\\n  -H "Content-Type: application/json" -d '${body}' | sed 's/.*"id":"\\([^"]*\\)".*/\\1/')\ncurl -sN ${base}/messages/text -H "Authorization: Bearer ${key}" \\\n  -H "Content-Type: application/json" -H "Accept: text/event-stream" \\\n  -d "{\\"session_id\\": \\"$SESSION\\", \\"content\\": \\"Hello\\"}"`],
    Python: ["python", `import httpx\n\napi = httpx.Client(base_url="${base}", headers={"Authorization": "Bearer ${key}"}, timeout=120)\nsession = api.post("/sessions", json=${body}).json()\nanswer = api.post("/messages/text", json={"session_id": session["id"], "content": "Hello"}).json()\nprint(answer["content"], answer["usage"])`],
    JavaScript: ["js", `const call = (path, body) => fetch("${base}" + path, {\n  method: "POST",\n  headers: { Authorization: "Bearer ${key}", "Content-Type": "application/json" },\n  body: JSON.stringify(body),\n}).then((response) => response.json());\n\nconst session = await call("/sessions", ${body});\nconst answer = await call("/messages/text", { session_id: session.id, content: "Hello" });\nconsole.log(answer.content, answer.usage);`],
  };
};

export function Keys() {
  const keys = useSignal(/** @type {Key[] | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const making = useSignal(false);
  const shown = useSignal(/** @type {KeyWithSecret | null} */ (null));
  const load = () => get("keys", { limit: 100 }).then((list) => { keys.value = list; }, (error) => { problem.value = error; });
  useEffect(() => { document.title = `${t.keys.title} · ${t.product}`; load(); }, []);
  const revoke = async (/** @type {Key} */ key) => { if (await ask(t.keys.revoke, t.keys.revokeAsk(key.name), t.keys.revoke)) { await remove(`keys/${key.id}`); load(); } };
  const rotate = async (/** @type {Key} */ key) => { shown.value = await post(`keys/${key.id}/rotate`, {}, null); load(); };
  return html`<main class="page" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.keys.title}</h1><span class="grow"></span><button type="button" class="button primary" onClick=${() => { making.value = true; }}><${Icon} name="plus" size=${16} />${t.keys.fresh}</button></header>
    <p class="lead">${t.keys.lead}</p>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${load} />`}
    ${keys.value?.length === 0 && html`<${Empty} icon="keys" title=${t.keys.empty}>${t.keys.emptyLead}<//>`}
    ${keys.value && keys.value.length > 0 && html`<div class="scroll-x" tabindex="0" role="group" aria-label=${t.keys.title}><table class="table"><thead><tr><th scope="col">${t.keys.name}</th><th scope="col" class="wide-only">Id</th><th scope="col" class="wide-only">${t.keys.may}</th><th scope="col">${t.keys.created}</th><th><span class="unseen">${t.more}</span></th></tr></thead>
      <tbody>${keys.value.map((key) => html`<tr key=${key.id} data-off=${Boolean(key.revoked_at)}><th scope="row">${key.name}${key.revoked_at && html` <span class="pill" data-status="failed">${t.keys.revoked}</span>`}</th><td class="wide-only"><code>ap_${key.id}…</code></td><td class="wide-only">${key.scopes.length} scopes</td><td>${when(key.created_at)}</td>
        <td>${!key.revoked_at && html`<${Menu} items=${[{ icon: "again", label: t.keys.rotate, act: () => rotate(key) }, { icon: "trash", label: t.keys.revoke, danger: true, act: () => revoke(key) }]} />`}</td></tr>`)}</tbody></table></div>`}
    ${making.value && html`<${Make} onClose=${(/** @type {KeyWithSecret | undefined} */ key) => { making.value = false; if (key) { shown.value = key; load(); } }} />`}
    ${shown.value && html`<${Shown} secret=${shown.value} onClose=${() => { shown.value = null; }} />`}
  </main>`;
}

/** @param {{ onClose: (key?: KeyWithSecret) => void }} props */
function Make({ onClose }) {
  const name = useSignal("");
  const preset = useSignal("talk");
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const make = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    try { onClose(await post("keys", { name: name.value, scopes: SCOPES[preset.value] }, null)); } catch (error) { problem.value = problemOf(error); }
  };
  return html`<${Dialog} title=${t.keys.fresh} onClose=${() => onClose()}><form onSubmit=${make}>
    <label class="field">${t.keys.name}<input class="input" required maxlength="200" autofocus value=${name.value} onInput=${(event) => { name.value = event.target.value; }} /></label>
    <div class="field">${t.keys.may}<${Choice} label=${t.keys.may} value=${preset.value} options=${t.keys.presets} onChange=${(key) => { preset.value = key; }} /><small>${SCOPES[preset.value]?.join(" · ")}</small></div>
    ${problem.value && html`<p class="note" data-kind="bad" role="alert">${problem.value.message}</p>`}
    <footer><button class="button primary" disabled=${!name.value.trim()}>${t.keys.make}</button></footer></form><//>`;
}

/** @param {{ secret: KeyWithSecret, onClose: () => void }} props */
function Shown({ secret, onClose }) {
  const language = useSignal("curl");
  const all = snippets(secret.key, agents.value?.[0]?.id ?? "…");
  const [kind, code] = all[language.value] ?? ["", ""];
  return html`<${Dialog} title=${secret.name} wide onClose=${onClose}><p class="note" data-kind="warn">${t.keys.once}</p>
    <p class="secret"><code>${secret.key}</code><${CopyButton} text=${secret.key} /></p>
    <${Choice} label=${t.keys.language} value=${language.value} options=${Object.fromEntries(Object.keys(all).map((name) => [name, name]))} onChange=${(key) => { language.value = key; }} />
    <${CodeBlock} code=${code} language=${kind} />
    <footer><button type="button" class="button primary" onClick=${onClose}>${t.keys.stored}</button></footer><//>`;
}
