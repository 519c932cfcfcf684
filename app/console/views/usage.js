/** What was used and what it cost, by day and by agent, model or key. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../lib/api.js";
import { BarChart } from "../lib/chart.js";
import { count, money } from "../lib/format.js";
import { html } from "../lib/html.js";
import { agentById } from "../lib/store.js";
import { Choice, Empty, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";

const DAY = 86_400_000;
/** @type {Record<keyof typeof t.usage.metrics, { of: (row: UsageRow) => number, format: (value: number) => string }>} */
const MEASURES = {
  turns: { of: (row) => row.turns, format: count },
  tokens: { of: (row) => row.prompt_tokens + row.completion_tokens, format: count },
  cost: { of: (row) => row.cost_usd ?? 0, format: (usd) => (usd === 0 ? "$0" : money(usd)) },
  speech: { of: (row) => row.speech_in_seconds / 60, format: (minutes) => (minutes >= 10 ? count(Math.round(minutes)) : minutes.toFixed(1)) },
};
/** @param {string} day */
const dayName = (day) => new Intl.DateTimeFormat("en", { day: "numeric", month: "short", timeZone: "UTC" }).format(new Date(day));

export function Usage() {
  const range = useSignal("30");
  const by = useSignal(/** @type {keyof typeof t.usage.groups} */ ("agent"));
  const metric = useSignal(/** @type {keyof typeof t.usage.metrics} */ ("turns"));
  const rows = useSignal(/** @type {UsageRow[] | null} */ (null));
  const keys = useSignal(/** @type {Key[]} */ ([]));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  useEffect(() => { document.title = `${t.usage.title} · ${t.product}`; get("keys", { limit: 100 }).then((list) => { keys.value = list; }, () => {}); }, []);
  const days = Array.from({ length: Number(range.value) }, (_, index) => new Date(Date.now() - (Number(range.value) - 1 - index) * DAY).toISOString().slice(0, 10));
  const load = () => get("usage", { from: days[0], to: days.at(-1), group_by: `day,${by.value}` }).then((list) => { rows.value = list; problem.value = null; }, (error) => { problem.value = error; });
  useEffect(() => { load(); }, [range.value, by.value]);
  const field = /** @type {const} */ ({ agent: "agent_id", model: "model", key: "key_id" })[by.value];
  /** @param {string | null | undefined} key @returns {string} */
  const name = (key) => ({ agent: agentById.value.get(key ?? "")?.name ?? t.usage.archived, model: key ?? "–", key: keys.value.find(({ id }) => id === key)?.name ?? t.usage.local })[by.value];
  const { of, format } = MEASURES[metric.value];
  const measures = /** @type {[keyof typeof MEASURES, typeof MEASURES["turns"]][]} */ (Object.entries(MEASURES));
  const all = rows.value ?? [];
  /** @param {UsageRow[]} list @param {(row: UsageRow) => number} measure */
  const sum = (list, measure) => list.reduce((total, row) => total + measure(row), 0);
  const groups = [...Map.groupBy(all, (row) => row[field])].map(([key, list]) => ({ key: key ?? "", name: name(key), list, total: sum(list, of) })).sort((a, b) => b.total - a.total);
  const series = groups.map(({ key, name: title, list }) => { const values = new Map(list.map((row) => [row.day, of(row)])); return { key, name: title, values: days.map((day) => values.get(day) ?? 0) }; });
  const unpriced = sum(all, (row) => row.unpriced_turns);
  return html`<main class="page" id="content">
    <header class="page-head"><h1 tabindex="-1">${t.usage.title}</h1><span class="grow"></span>
      <${Choice} label=${t.usage.by} value=${by.value} options=${t.usage.groups} onChange=${(key) => { by.value = key; }} /><${Choice} label=${t.usage.range} value=${range.value} options=${{ 7: "7 d", 30: "30 d", 90: "90 d" }} onChange=${(key) => { range.value = key; }} /></header>
    ${problem.value && html`<${Trouble} problem=${problem.value} retry=${load} />`}
    <div class="figures" role="group" aria-label=${t.usage.metric}>${measures.map(([key, measure]) => html`
      <button type="button" key=${key} aria-pressed=${key === metric.value} onClick=${() => { metric.value = key; }}><span>${t.usage.metrics[key]}${key === "speech" ? `, ${t.usage.heard}` : ""}</span><strong>${measure.format(sum(all, measure.of))}</strong></button>`)}</div>
    ${rows.value && !all.length ? html`<${Empty} icon="usage" title=${t.usage.none} />` : html`
      <${BarChart} label=${t.usage.chart(t.usage.metrics[metric.value])} days=${days} series=${series} format=${format} dayName=${dayName} />
      ${unpriced > 0 && html`<p class="note">${t.usage.unpriced(count(unpriced), unpriced)}</p>`}
      <div class="scroll-x" tabindex="0" role="group" aria-label=${t.usage.table}><table class="table"><thead><tr><th scope="col">${t.usage.groups[by.value]}</th>${Object.entries(t.usage.metrics).map(([key, title]) => html`<th scope="col" key=${key}>${title}</th>`)}</tr></thead>
        <tbody>${groups.map(({ key, name: title, list }, which) => html`<tr key=${key}><th scope="row"><i class=${`series-${which % 6}`}></i>${title}</th>${Object.values(MEASURES).map((measure, index) => html`<td key=${index}>${measure.format(sum(list, measure.of))}</td>`)}</tr>`)}</tbody></table></div>`}
    <${Budgets} />
  </main>`;
}

/** @param {string} resource */
const nameOf = (resource) => /** @type {Record<string, string>} */ (t.budgets.resources)[resource] ?? resource;

/** What is left of today's limits of the caller. */
function Budgets() {
  const rows = useSignal(/** @type {Budget[]} */ ([]));
  useEffect(() => { get("usage/budgets").then((/** @type {Budget[]} */ list) => { rows.value = list.filter(({ kind, limit }) => (limit ?? 0) > 0 && kind !== "user" && kind !== "session"); }, () => {}); }, []);
  if (!rows.value.length) return null;
  /** @param {string} resource @param {number} amount */
  const text = (resource, amount) => (resource === "usd" ? (amount ? money(amount) : "$0") : count(Math.round(amount)));
  return html`<section class="budgets"><h2>${t.budgets.title}</h2><dl class="facts">${rows.value.map(({ bucket, resource, used, reserved, limit: most }) => { const limit = most ?? 0; return html`<div key=${`${bucket} ${resource}`}><dt>${nameOf(resource)}</dt><dd>
    <meter min="0" max=${limit} high=${limit * 0.9} value=${used + reserved} aria-label=${nameOf(resource)}></meter><span>${t.budgets.of(text(resource, used + reserved), text(resource, limit))}</span></dd></div>`; })}</dl></section>`;
}
