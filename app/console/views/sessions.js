/** Every conversation: searched on the server, shown as rows of which only those in sight exist. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { page, patch, problemOf, remove } from "../lib/api.js";
import { count, exactly, when } from "../lib/format.js";
import { html, memo } from "../lib/html.js";
import { agentById, agents, loadRecent, titleOf } from "../lib/store.js";
import { ask, Empty, Icon, Mark, notify, Trouble, VirtualList } from "../lib/ui.js";
import { t } from "../strings.js";

const AT_ONCE = 4;

/** @param {{ query: Record<string, string> }} props */
export function Sessions({ query }) {
  const words = useSignal(query.q ?? "");
  const agent = useSignal(query.agent ?? "");
  const rows = useSignal(/** @type {ListedSession[] | null} */ (null));
  const next = useSignal(/** @type {string | undefined} */ (undefined));
  const total = useSignal(0);
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const busy = useSignal(false);
  const chosen = useSignal(/** @type {Set<string> | null} */ (null)); // ids of the rows that are selected; null: rows are links
  /** @param {string} path @param {Record<string, unknown>} [params] */
  const load = async (path, params) => {
    busy.value = true;
    try {
      const answer = await page(path, params);
      rows.value = params ? answer.rows : [...(rows.value ?? []), ...answer.rows];
      next.value = answer.next;
      if (params) total.value = answer.total;
      problem.value = null;
    } catch (error) { problem.value = problemOf(error); }
    busy.value = false;
  };
  const search = () => {
    history.replaceState(null, "", `#/sessions?${new URLSearchParams(Object.entries({ q: words.value, agent: agent.value }).filter(([, value]) => value))}`);
    return load("sessions", { q: words.value.trim(), agent_id: agent.value, order: "updated", preview: true, limit: 100 });
  };
  const toggle = (/** @type {string} */ id) => { const next = new Set(chosen.value); if (!next.delete(id)) next.add(id); chosen.value = next; };
  /** Do something with each selected session, a few at a time; what failed stays selected. @param {(id: string) => Promise<unknown>} work */
  const each = async (work) => {
    busy.value = true;
    const all = [...(chosen.value ?? [])];
    const failed = /** @type {string[]} */ ([]);
    for (let from = 0; from < all.length; from += AT_ONCE) {
      const some = all.slice(from, from + AT_ONCE);
      (await Promise.allSettled(some.map(work))).forEach(({ status }, index) => { if (status === "rejected") failed.push(String(some[index])); });
    }
    chosen.value = failed.length ? new Set(failed) : null;
    notify(t.sessions.done(all.length - failed.length, failed.length), failed.length ? "bad" : "good");
    await Promise.all([search(), loadRecent().catch(() => {})]);
  };
  const removeAll = async () => { if (await ask(t.sessions.remove, t.sessions.removeAsk(chosen.value?.size ?? 0), t.sessions.remove)) await each((id) => remove(`sessions/${id}`)); };
  useEffect(() => { document.title = `${t.sessions.title} · ${t.product}`; }, []);
  useEffect(() => { const timer = setTimeout(search, rows.value ? 200 : 0); return () => clearTimeout(timer); }, [words.value, agent.value]);
  const found = rows.value?.length ?? 0;
  return html`<main class="page full" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.sessions.title}</h1><span role="status" class="quiet">${rows.value && t.sessions.found(count(total.value), total.value)}</span></header>
    <div class="tools">
      <label class="search"><${Icon} name="search" size=${16} /><span class="unseen">${t.sessions.search}</span><input type="search" class="input" placeholder=${t.sessions.search} value=${words.value} onInput=${(event) => { words.value = event.target.value; }} /></label>
      <label><span class="unseen">${t.sessions.agent}</span><select class="input" value=${agent.value} onChange=${(event) => { agent.value = event.target.value; }}>
        <option value="">${t.sessions.all}</option>${(agents.value ?? []).map((one) => html`<option key=${one.id} value=${one.id}>${one.name}</option>`)}</select></label>
      <button type="button" class="button" aria-pressed=${Boolean(chosen.value)} onClick=${() => { chosen.value = chosen.value ? null : new Set(); }}>${chosen.value ? t.cancel : t.sessions.select}</button>
    </div>
    ${chosen.value && html`<div class="tools bulk"><label class="check"><input type="checkbox" checked=${found > 0 && chosen.value.size === found} onChange=${(event) => { chosen.value = new Set(event.target.checked ? (rows.value ?? []).map(({ id }) => id) : []); }} />${t.sessions.selectAll}</label><span role="status">${t.sessions.selected(chosen.value.size)}</span><span class="grow"></span>
      <select class="input" aria-label=${t.sessions.move} disabled=${!chosen.value.size || busy.value} value="" onChange=${(event) => { const to = event.target.value; if (to) each((id) => patch(`sessions/${id}`, { agent_id: to })); }}><option value="">${t.sessions.move}</option>${(agents.value ?? []).filter((one) => !one.archived_at).map((one) => html`<option key=${one.id} value=${one.id}>${one.name}</option>`)}</select>
      <button type="button" class="button danger" disabled=${!chosen.value.size || busy.value} onClick=${removeAll}>${t.sessions.remove}</button></div>`}
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${search} />`}
    ${rows.value && !found && html`<${Empty} icon="sessions" title=${words.value ? t.sessions.nothing(words.value) : t.sessions.empty} />`}
    ${found > 0 && html`<${VirtualList} label=${t.sessions.list} total=${found} height=${60} more=${Boolean(next.value)} onEnd=${() => { if (!busy.value && next.value) load(next.value); }} row=${(/** @type {number} */ index) => row(/** @type {ListedSession[]} */ (rows.value)[index], chosen.value, toggle)} />`}
  </main>`;
}

/** @param {ListedSession} session @param {Set<string> | null} chosen @param {(id: string) => void} toggle */
const row = (session, chosen, toggle) => ({ key: session.id, content: chosen
  ? html`<label class="row"><input type="checkbox" aria-label=${t.sessions.choose(titleOf(session))} checked=${chosen.has(session.id)} onChange=${() => toggle(session.id)} /><span class="row-main"><strong>${titleOf(session)}</strong><small>${agentById.value.get(session.agent_id)?.name ?? ""} · ${t.sessions.messages(session.last_seq)}</small></span></label>`
  : html`<${Row} session=${session} agent=${agentById.value.get(session.agent_id)} />` });

const Row = memo((/** @type {{ session: ListedSession, agent?: Agent }} */ { session, agent }) => html`<a class="row" href=${`#/chat/${session.id}`}><${Mark} id=${session.agent_id} size=${28} />
    <span class="row-main"><strong title=${titleOf(session)}>${titleOf(session)}</strong><small>${session.match ? html`<span class="match">${session.match.snippet}</span>` : `${agent?.name ?? ""} · ${t.sessions.messages(session.last_seq)}${session.user_id ? ` · ${session.user_id}` : ""}`}</small></span>
    <time title=${exactly(session.updated_at)}>${when(session.updated_at)}</time></a>`);
