/** Two versions of an agent, side by side: each question goes to both. */
import { batch, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../lib/api.js";
import { conversation } from "../lib/conversation.js";
import { html } from "../lib/html.js";
import { go, newSession } from "../lib/store.js";
import { notify } from "../lib/ui.js";
import { t } from "../strings.js";
import { Thread } from "./chat.js";
import { Composer } from "./composer.js";

/** @param {string} turn */
const openTurn = (turn) => go(`turns/${turn}`);

/** @param {{ agent: Agent, query: Record<string, string> }} props */
export function Compare({ agent, query }) {
  const versions = useSignal(/** @type {number[]} */ ([]));
  const chosen = useSignal([Number(query.a) || Math.max(1, agent.version - 1), Number(query.b) || agent.version]);
  const talks = useSignal(/** @type {Conversation[] | null} */ (null)); // one conversation for each side, once something was said
  useEffect(() => { get(`agents/${agent.id}/versions`).then((/** @type {AgentVersion[]} */ list) => { versions.value = list.map(({ version }) => version).toSorted((one, other) => other - one); }, (problem) => notify(problem.message, "bad")); }, [agent.version]);
  /** @param {number} side @param {number} version */
  const choose = (side, version) => batch(() => { talks.value = null; chosen.value = chosen.value.map((one, index) => (index === side ? version : one)); });
  const say = async (/** @type {FirstWords} */ { text = "", files = [] }) => {
    if (!text && !files.length) return;
    let both = talks.value;
    if (!both) {
      both = await Promise.all(chosen.value.map(async (version) => {
        const session = await newSession(agent.id, `v${version}: ${text}`);
        const talk = conversation(session.id);
        batch(() => { talk.session.value = session; talk.loaded.value = true; });
        talk.agentVersion = version;
        return talk;
      }));
      talks.value = both;
    }
    const outcomes = await Promise.allSettled(both.map((talk) => talk.say(text, files)));
    const refused = outcomes.find(({ status }) => status === "rejected");
    if (refused) throw /** @type {any} */ (refused).reason;
  };
  return html`<div class="compare"><div class="compare-sides">${chosen.value.map((version, side) => html`<section key=${side} aria-label=${t.agents.side(side, version)}>
      <header><label class="field"><span class="unseen">${t.agents.sideVersion(side)}</span><select class="input" value=${version} onChange=${(event) => choose(side, Number(event.target.value))}>${(versions.value.length ? versions.value : [version]).map((one) => html`<option key=${one} value=${one}>${`v${one}${one === agent.version ? ` · ${t.agents.current}` : ""}`}</option>`)}</select></label>
        ${talks.value && html`<a href=${`#/chat/${talks.value[side]?.id}`}>${t.inbox.open}</a>`}</header>
      ${talks.value ? html`<${Thread} key=${talks.value[side]?.id} talk=${talks.value[side]} agent=${agent} inspect=${openTurn} label=${`${t.chat.conversation}, v${version}`} />` : html`<div class="thread-place trial-empty"><p>${t.agents.compareLead}</p></div>`}</section>`)}</div>
    <${Composer} id=${`compare:${agent.id}`} agent=${agent} onFirst=${say} textOnly still /></div>`;
}
