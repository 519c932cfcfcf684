/** Every conversation: searched on the server, shown as rows of which only those in sight exist. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { page } from "../lib/api.js";
import { count, exactly, when } from "../lib/format.js";
import { html, memo } from "../lib/html.js";
import { agentById, agents, titleOf } from "../lib/store.js";
import { Empty, Icon, Mark, Trouble, VirtualList } from "../lib/ui.js";
import { t } from "../strings.js";

export function Sessions({ query }) {
  const words = useSignal(query.q ?? "");
  const agent = useSignal(query.agent ?? "");
  const rows = useSignal(null);
  const next = useSignal(null);
  const total = useSignal(0);
  const problem = useSignal(null);
  const busy = useSignal(false);
  const load = async (path, params) => {
    busy.value = true;
    try {
      const answer = await page(path, params);
      rows.value = params ? answer.rows : [...rows.value, ...answer.rows];
      next.value = answer.next;
      if (params) total.value = answer.total;
      problem.value = null;
    } catch (error) { problem.value = error; }
    busy.value = false;
  };
  const search = () => {
    history.replaceState(null, "", `#/sessions?${new URLSearchParams(Object.entries({ q: words.value, agent: agent.value }).filter(([, value]) => value))}`);
    return load("sessions", { q: words.value.trim(), agent_id: agent.value, order: "updated", preview: true, limit: 100 });
  };
  useEffect(() => { document.title = `${t.sessions.title} · ${t.product}`; }, []);
  useEffect(() => { const timer = setTimeout(search, rows.value ? 200 : 0); return () => clearTimeout(timer); }, [words.value, agent.value]);
  const found = rows.value?.length ?? 0;
  return html`<main class="page full" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.sessions.title}</h1><span role="status" class="quiet">${rows.value && t.sessions.found(count(total.value), total.value)}</span></header>
    <div class="tools">
      <label class="search"><${Icon} name="search" size=${16} /><span class="unseen">${t.sessions.search}</span><input type="search" class="input" placeholder=${t.sessions.search} value=${words.value} onInput=${(event) => { words.value = event.target.value; }} /></label>
      <label><span class="unseen">${t.sessions.agent}</span><select class="input" value=${agent.value} onChange=${(event) => { agent.value = event.target.value; }}>
        <option value="">${t.sessions.all}</option>${(agents.value ?? []).map((one) => html`<option key=${one.id} value=${one.id}>${one.name}</option>`)}</select></label>
    </div>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${search} />`}
    ${rows.value && !found && html`<${Empty} icon="sessions" title=${words.value ? t.sessions.nothing(words.value) : t.sessions.empty} />`}
    ${found > 0 && html`<${VirtualList} label=${t.sessions.list} total=${found} height=${60} more=${Boolean(next.value)} onEnd=${() => { if (!busy.value && next.value) load(next.value); }} row=${(index) => row(rows.value[index])} />`}
  </main>`;
}

const row = (session) => ({ key: session.id, content: html`<${Row} session=${session} agent=${agentById.value.get(session.agent_id)} />` });

const Row = memo(({ session, agent }) => html`<a class="row" href=${`#/chat/${session.id}`}><${Mark} id=${session.agent_id} size=${28} />
    <span class="row-main"><strong title=${titleOf(session)}>${titleOf(session)}</strong><small>${session.match ? html`<span class="match">${session.match.snippet}</span>` : `${agent?.name ?? ""} · ${t.sessions.messages(session.last_seq)}${session.user_id ? ` · ${session.user_id}` : ""}`}</small></span>
    <time title=${exactly(session.updated_at)}>${when(session.updated_at)}</time></a>`);
