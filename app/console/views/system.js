/** The server: its version and database, who serves chat and speech, and limits that hold for everybody. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "../lib/api.js";
import { html } from "../lib/html.js";
import { Icon, Trouble } from "../lib/ui.js";
import { t } from "../strings.js";

export function System() {
  const state = useSignal(/** @type {SystemState | null} */ (null));
  const problem = useSignal(/** @type {Problem | null} */ (null));
  const load = () => get("system").then((read) => { state.value = read; problem.value = null; }, (error) => { problem.value = error; });
  useEffect(() => { document.title = `${t.system.title} · ${t.product}`; load(); }, []);
  const head = html`<header class="page-head"><h1 tabindex="-1">${t.system.title}</h1><span class="grow"></span><a class="button" href="docs" target="_blank" rel="noopener"><${Icon} name="out" size=${16} />${t.system.docs}</a></header>`;
  if (problem.value) return html`<main class="page narrow" id="content">${head}<${Trouble} problem=${problem.value} retry=${load} /></main>`;
  if (!state.value) return html`<main class="page narrow" id="content">${head}<p class="loading">${t.loading}</p></main>`;
  const { version, environment, database, providers, default_voice: voice, limits } = state.value;
  /** @param {[string, Html][]} rows */
  const facts = (rows) => html`<dl class="facts">${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
  return html`<main class="page narrow" id="content">${head}<div class="turn">
    <section>${facts([[t.system.version, version], [t.system.environment, environment], [t.system.database, `${database.kind === "sqlite" ? "SQLite" : "PostgreSQL"}, ${t.system.revision} ${database.revision}`]])}</section>
    <section><h2>${t.system.providers}</h2><dl class="facts">${providers.map((one) => html`<div key=${one.capability}><dt>${t.system.roles[one.capability]}</dt><dd>
      ${one.host === "embedded" ? t.system.embedded : html`${one.model} <span class="quiet">${one.host}</span>`}
      ${one.shutdown_date && html` <span class="pill" data-status="live">${t.system.ends(one.shutdown_date)}</span>`}
      ${" "}<span class="pill" data-status=${one.is_failing ? "failed" : "completed"}>${one.is_failing ? t.system.fails : t.system.works}</span></dd></div>`)}
      <div><dt>${t.system.voice}</dt><dd>${voice}</dd></div></dl></section>
    <section><h2>${t.system.limits}</h2>${facts([[t.system.upload, `${Math.round(limits.upload_bytes / 2 ** 20)} MB`], [t.system.kept, t.system.days(limits.audio_retention_days)], [t.system.keys, t.system.hours(limits.idempotency_hours)]])}</section>
  </div></main>`;
}
