/** Agents: the list, and one with its instructions, the conversation that tries them, and its versions. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get, post, problemOf, put, remove } from "../lib/api.js";
import { conversation } from "../lib/conversation.js";
import { diff } from "../lib/diff.js";
import { exactly, firstLine, when } from "../lib/format.js";
import { html } from "../lib/html.js";
import { agentById, agents, drafts, go, keepDraft, loadAgents, newSession, system } from "../lib/store.js";
import { Choice, Empty, Icon, Mark, Menu, MenuButton, notify } from "../lib/ui.js";
import { t } from "../strings.js";
import { AgentTools } from "./agent-tools.js";
import { Compare } from "./compare.js";
import { Thread } from "./chat.js";
import { Composer } from "./composer.js";

const FIELDS = /** @type {const} */ (["name", "system_prompt", "model", "temperature", "max_output_tokens", "voice", "language"]);
/** @typedef {typeof FIELDS[number]} Field */
const NARROW = "(max-width: 60rem)"; // as in console.css
const LABELS = { name: t.agents.name, system_prompt: t.agents.prompt, model: t.agents.model, temperature: t.agents.temperature, max_output_tokens: t.agents.tokens, voice: t.agents.voice, language: t.agents.language };

export function Agents() {
  useEffect(() => { document.title = `${t.agents.title} · ${t.product}`; }, []);
  const make = async () => { const made = await post("agents", { name: t.agents.fresh, system_prompt: t.home.agentPrompt }); await loadAgents(); go(`agents/${made.id}`); };
  return html`<main class="page" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.agents.title}</h1><span class="grow"></span><button type="button" class="button primary" onClick=${make}><${Icon} name="plus" size=${16} />${t.agents.fresh}</button></header>
    ${agents.value?.length === 0 && html`<${Empty} icon="agents" title=${t.agents.empty}>${t.agents.emptyLead}<//>`}
    <ul class="cards">${(agents.value ?? []).map((agent) => html`<li key=${agent.id} class="card" data-archived=${Boolean(agent.archived_at)}>
      <a href=${`#/agents/${agent.id}`}><${Mark} id=${agent.id} size=${40} /><strong>${agent.name}</strong><p>${firstLine(agent.system_prompt, 140)}</p><small>v${agent.version} · ${agent.archived_at ? t.agents.archived : when(agent.updated_at)}</small></a></li>`)}</ul></main>`;
}

/** @param {{ id: string, query: Record<string, string> }} props */
export function Agent({ id, query }) {
  const agent = agentById.value.get(id);
  const narrow = useSignal(matchMedia(NARROW).matches);
  useEffect(() => { const watch = matchMedia(NARROW); const look = () => { narrow.value = watch.matches; }; watch.addEventListener("change", look); return () => watch.removeEventListener("change", look); }, []);
  const tab = !narrow.value && query.tab === "try" ? "edit" : query.tab ?? "edit";
  useEffect(() => { if (agent) document.title = `${agent.name} · ${t.product}`; }, [agent?.name]);
  if (!agent) return html`<main class="page" id="content"><p class="loading">${t.loading}</p></main>`;
  const unarchive = async () => { await post(`agents/${id}/unarchive`, {}, null); await loadAgents(); };
  const archive = async () => { await remove(`agents/${id}`); await loadAgents(); go("agents"); };
  return html`<div class="agent" data-tab=${tab}>
    <main class="agent-main" id="content">
      <header class="bar"><${MenuButton} /><${Mark} id=${id} size=${28} /><div class="bar-title"><h1 tabindex="-1">${agent.name}</h1><p>v${agent.version} · ${when(agent.updated_at)}</p></div>
        <${Choice} label=${t.agents.title} value=${tab} options=${{ edit: t.agents.edit, tools: t.tools.ofAgent, versions: t.agents.versions, compare: t.agents.compareTab, ...(narrow.value && { try: t.agents.try }) }} onChange=${(/** @type {string} */ key) => go(`agents/${id}?tab=${key}`)} />
        <${Menu} items=${[{ icon: "talk", label: t.agents.talk, act: () => go(`?agent=${id}`) }, agent.archived_at ? { icon: "again", label: t.unarchive, act: unarchive } : { icon: "trash", label: t.agents.archive, danger: true, act: archive }]} /></header>
      ${tab === "try" ? null : tab === "versions" ? html`<${Versions} key=${agent.version} agent=${agent} />` : tab === "compare" ? html`<${Compare} key=${agent.version} agent=${agent} query=${query} />` : tab === "tools" ? html`<${AgentTools} key=${agent.version} agent=${agent} />` : html`<${Editor} key=${`${id} ${agent.version}`} agent=${agent} />`}
    </main>
    ${(narrow.value ? tab === "try" : tab !== "compare") && html`<${Trial} key=${id} agent=${agent} />`}
  </div>`;
}

/** What is typed stays in this browser until it is saved or discarded, also over a reload. @param {{ agent: Agent }} props */
function Editor({ agent }) {
  const place = `agent:${agent.id}`;
  const kept = /** @type {Partial<Record<Field, string | number | null>>} */ (JSON.parse(drafts.value[place] ?? "{}"));
  const value = (/** @type {Field} */ field) => kept[field] ?? agent[field];
  const dirty = FIELDS.some((field) => field in kept && (kept[field] ?? "") !== (agent[field] ?? ""));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  /** @param {Field} field @param {string | number | null} next */
  const set = (field, next) => keepDraft(place, JSON.stringify({ ...kept, [field]: next }));
  const input = (/** @type {Field} */ field) => (/** @type {Submitted} */ event) => set(field, event.target.value);
  const number = (/** @type {Field} */ field) => (/** @type {Submitted} */ event) => set(field, event.target.value === "" ? null : Number(event.target.value));
  const wrong = (/** @type {Field} */ field) => problem.value?.fields.find(({ loc }) => loc.includes(field))?.msg;
  const save = async (/** @type {Event | undefined} */ event = undefined) => {
    event?.preventDefault();
    try {
      const body = Object.fromEntries(FIELDS.filter((field) => field in kept).map((field) => [field, kept[field] === "" && field !== "name" && field !== "system_prompt" ? null : kept[field]]));
      const { version } = await put(`agents/${agent.id}`, body, agent.version);
      keepDraft(place, "");
      await loadAgents();
      notify(t.agents.saved(version));
    } catch (caught) {
      const error = problemOf(caught);
      if (error.code === "version-changed") { await loadAgents(); notify(t.agents.changed, "bad"); } else problem.value = error;
    }
  };
  /** @param {Field} field @param {string} hint @param {string} [help] */
  const text = (field, hint, help) => html`<label class="field">${LABELS[field]}<input class="input" value=${value(field) ?? ""} placeholder=${hint} aria-invalid=${wrong(field) ? "true" : undefined} onInput=${input(field)} />${(wrong(field) || help) && html`<small data-wrong=${Boolean(wrong(field))}>${wrong(field) ?? help}</small>`}</label>`;
  return html`<form class="editor" onSubmit=${save} onKeyDown=${(event) => { if ((event.metaKey || event.ctrlKey) && event.key === "s") { event.preventDefault(); if (dirty) save(); } }}>
    <div class="editor-body">
      ${text("name", "")}
      <label class="field prompt">${LABELS.system_prompt}<textarea class="input" spellcheck="true" value=${value("system_prompt")} onInput=${input("system_prompt")}></textarea><small>${t.agents.promptHelp}</small></label>
      <div class="fields">
        ${text("model", system.value?.providers.find((one) => one.capability === "chat")?.model ?? t.agents.modelDefault)}${text("voice", system.value?.default_voice ?? t.agents.voiceDefault)}${text("language", "en", t.agents.languageHelp)}
        <label class="field">${LABELS.max_output_tokens}<input class="input" type="number" min="1" placeholder=${t.agents.modelDefault} value=${value("max_output_tokens") ?? ""} onInput=${number("max_output_tokens")} /></label>
        <label class="field"><span class="field-head">${LABELS.temperature}<output>${value("temperature") ?? t.agents.modelDefault}</output></span><input type="range" min="0" max="2" step="0.1" value=${value("temperature") ?? 1} onInput=${number("temperature")} /></label>
      </div>
    </div>
    ${problem.value && html`<p class="note" data-kind="bad" role="alert">${problem.value.message}</p>`}
    <footer class="savebar" data-dirty=${dirty}><span>${dirty ? t.agents.dirty : ""}</span><span class="grow"></span>
      ${dirty && html`<button type="button" class="button" onClick=${() => keepDraft(place, "")}>${t.agents.discard}</button>`}
      <button class="button primary" disabled=${!dirty}>${t.agents.save(agent.version + 1)}</button></footer>
  </form>`;
}

/** @param {string} turn */
const openTurn = (turn) => go(`turns/${turn}`);

/** @param {{ agent: Agent }} props */
function Trial({ agent }) {
  const session = useSignal(/** @type {string | null} */ (null));
  const dirty = Boolean(drafts.value[`agent:${agent.id}`]);
  const first = async (/** @type {FirstWords} */ { text, recording }) => {
    const made = await newSession(agent.id, text);
    const talk = conversation(made.id);
    talk.session.value = made;
    talk.loaded.value = true;
    session.value = made.id;
    return recording ? talk.speak(recording) : talk.say(text ?? "");
  };
  const talk = session.value ? conversation(session.value) : null;
  return html`<aside class="trial" aria-label=${t.chat.conversation}>
    <header class="bar"><h2>${t.agents.trying(agent.version)}</h2>${dirty && html`<small>${t.agents.tryDirty(agent.version)}</small>`}<span class="grow"></span>
      ${talk && html`<button type="button" class="button quiet" onClick=${() => { session.value = null; }}>${t.nav.fresh}</button>`}</header>
    ${talk ? html`<${Thread} talk=${talk} agent=${agent} inspect=${openTurn} />` : html`<div class="thread-place trial-empty"><${Mark} id=${agent.id} size=${56} state="thinking" /><p>${t.agents.tryLead(agent.name)}</p></div>`}
    <${Composer} id=${session.value ?? `trial:${agent.id}`} agent=${agent} talk=${talk} onFirst=${first} still /></aside>`;
}

/** @param {{ agent: Agent }} props */
function Versions({ agent }) {
  const versions = useSignal(/** @type {AgentVersion[]} */ ([]));
  const chosen = useSignal(/** @type {number | null} */ (null));
  useEffect(() => { get(`agents/${agent.id}/versions`).then((/** @type {AgentVersion[]} */ list) => { versions.value = list.toSorted((a, b) => b.version - a.version); chosen.value = list.length > 1 ? agent.version - 1 : agent.version; }); }, [agent.version]);
  const now = versions.value.find(({ version }) => version === agent.version);
  const then = versions.value.find(({ version }) => version === chosen.value);
  const restore = async (/** @type {AgentVersion} */ one) => {
    const { version } = await post(`agents/${agent.id}/versions/${one.version}/restore`);
    await loadAgents();
    notify(t.agents.restored(one.version, version));
  };
  const changed = then && now ? FIELDS.filter((field) => (then[field] ?? "") !== (now[field] ?? "")) : [];
  return html`<div class="versions">
    <ol aria-label=${t.agents.versions}>${versions.value.map((one) => html`<li key=${one.version}><button type="button" aria-pressed=${one.version === chosen.value} onClick=${() => { chosen.value = one.version; }}><b>v${one.version}</b>${one.version === agent.version && html`<span class="pill">${t.agents.current}</span>`}<time title=${exactly(one.created_at)}>${when(one.created_at)}</time></button></li>`)}</ol>
    ${then && now && html`<section class="diff"><header><h2>${then === now ? `v${now.version}` : t.agents.compare(then.version, now.version)}</h2><span class="grow"></span>${then !== now && html`<button type="button" class="button" onClick=${() => restore(then)}><${Icon} name="again" size=${16} />${t.agents.restore(then.version)}</button>`}</header>
      ${then === now ? html`<pre class="diff-text">${now.system_prompt}</pre>` : changed.length === 0 ? html`<p class="quiet">${t.agents.same}</p>`
        : changed.map((field) => html`<div key=${field}><h3>${LABELS[field]}</h3><pre class="diff-text">${diff(String(then[field] ?? t.none), String(now[field] ?? t.none)).map(([kind, text]) => (kind === "+" ? html`<ins>${text}</ins>` : kind === "-" ? html`<del>${text}</del>` : text))}</pre></div>`)}
    </section>`}</div>`;
}
