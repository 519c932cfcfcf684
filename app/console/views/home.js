/** The first page: one line to begin with. An empty installation needs no form, its first words make the first agent. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { post } from "../lib/api.js";
import { audioContext } from "../lib/audio.js";
import { begin } from "../lib/conversation.js";
import { when } from "../lib/format.js";
import { html } from "../lib/html.js";
import { agentById, agents, loadAgents, recent, titleOf } from "../lib/store.js";
import { Mark, notify } from "../lib/ui.js";
import { t } from "../strings.js";
import { Composer } from "./composer.js";

/** @param {{ agentId?: string }} props */
export function Home({ agentId }) {
  const all = (agents.value ?? []).filter((agent) => !agent.archived_at);
  const chosen = useSignal(/** @type {string | null} */ (null));
  const agent = agentById.value.get(chosen.value ?? agentId ?? "") ?? agentById.value.get(recent.value[0]?.agent_id ?? "") ?? all[0];
  useEffect(() => { document.title = t.product; }, []);
  const first = async (/** @type {FirstWords} */ words) => {
    audioContext(); // inside the click, for the answer's sound
    const id = agent?.id ?? (await post("agents", { name: t.home.agentName, system_prompt: t.home.agentPrompt })).id;
    if (!agent) await loadAgents();
    await begin(id, words);
  };
  if (!agents.value) return html`<main class="page" id="content"><p class="loading">${t.loading}</p></main>`;
  const known = all.length > 0;
  return html`<main class="home" id="content">
    <div class="home-middle">
      <${Mark} id=${agent?.id ?? "brand"} size=${72} state="thinking" />
      <h1 tabindex="-1">${known ? t.home.helloKnown : t.home.hello}</h1>
      <p class="lead">${known ? t.home.leadKnown : t.home.lead}</p>
      ${all.length > 1 && html`<div class="pick" role="group" aria-label=${t.sessions.agent}>${all.slice(0, 6).map((one) => html`
        <button type="button" key=${one.id} class="pick-agent" aria-pressed=${one.id === agent.id} onClick=${() => { chosen.value = one.id; }}><${Mark} id=${one.id} size=${24} />${one.name}</button>`)}</div>`}
      <${Composer} id="home" agent=${agent} onFirst=${first} onLive=${() => first({ isLive: true })} />
      ${!recent.value.length && html`<div class="prompts" role="group" aria-label=${t.home.prompts_label}>${t.home.prompts.map((prompt) => html`
        <button type="button" key=${prompt} class="button" onClick=${() => first({ text: prompt }).catch((problem) => notify(problem.message, "bad"))}>${prompt}</button>`)}</div>`}
      ${recent.value.length > 0 && html`<section class="home-recent"><h2>${t.nav.recent}</h2><ul>${recent.value.slice(0, 4).map((session) => html`
        <li key=${session.id}><a href=${`#/chat/${session.id}`}><${Mark} id=${session.agent_id} size=${24} /><span>${titleOf(session)}</span><time>${when(session.updated_at)}</time></a></li>`)}</ul></section>`}
    </div></main>`;
}
