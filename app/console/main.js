/** The shell: which view is shown, what stands beside it, and the keys that reach everything. */
import { signal } from "@preact/signals";
import { render } from "preact";
import { useEffect } from "preact/hooks";
import { html } from "./lib/html.js";
import { problemOf, remove, signedOut } from "./lib/api.js";
import { focusHeading, lazy } from "./lib/lazy.js";
import { agents, drawer, go, helpOpen, letterKeys, loadAgents, loadMe, loadRecent, loadWaiting, me, paletteOpen, recent, titleOf, waiting } from "./lib/store.js";
import { Icon, IconButton, Mark, MenuButton, Notices, Question, Trouble } from "./lib/ui.js";
import { t } from "./strings.js";
import { Chat } from "./views/chat.js";
import { Home } from "./views/home.js";

const [Agents, Agent] = ["Agents", "Agent"].map((name) => lazy(() => import("./views/agents.js"), name));
const [Palette, Help] = ["Palette", "Help"].map((name) => lazy(() => import("./views/palette.js"), name));
const Inbox = lazy(() => import("./views/inbox.js"), "Inbox");
const Keys = lazy(() => import("./views/keys.js"), "Keys");
const Sessions = lazy(() => import("./views/sessions.js"), "Sessions");
const SignIn = lazy(() => import("./views/sign-in.js"), "SignIn");
const System = lazy(() => import("./views/system.js"), "System");
const Tools = lazy(() => import("./views/tools.js"), "Tools");
const TurnPage = lazy(() => import("./views/turn.js"), "TurnPage");
const Usage = lazy(() => import("./views/usage.js"), "Usage");

/** @type {[Exclude<keyof typeof t.nav, "waiting">, string, string][]} name, path, picture */
const NAV = [["talk", "", "talk"], ["agents", "agents", "agents"], ["tools", "tools", "tool"], ["inbox", "inbox", "inbox"], ["sessions", "sessions", "sessions"], ["usage", "usage", "usage"], ["keys", "keys", "keys"], ["system", "system", "system"]];
const place = signal(read());
const problem = signal(/** @type {Problem | null} */ (null));
const theme = signal(/** @type {"auto" | "light" | "dark"} */ (document.documentElement.dataset.theme ?? "auto"));

function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view = "", id] = path.split("/");
  return { view, id, query: Object.fromEntries(new URLSearchParams(query)) };
}

addEventListener("hashchange", () => {
  place.value = read();
  drawer.value = false;
  requestAnimationFrame(focusHeading);
});

/** @type {Record<string, string>} */
const GOTO = { t: "", a: "agents", o: "tools", i: "inbox", s: "sessions", u: "usage", k: "keys", y: "system" };
let waitsForPlace = 0;
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") { event.preventDefault(); if (!document.querySelector("dialog[open]")) paletteOpen.value = true; return; }
  if (!letterKeys.value || document.querySelector("dialog[open]")) return;
  if (/** @type {Element} */ (event.target).closest("input,textarea,select,[contenteditable]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (performance.now() - waitsForPlace < 1000 && event.key in GOTO) { go(GOTO[event.key]); waitsForPlace = 0; event.preventDefault(); }
  else if (event.key === "g") waitsForPlace = performance.now();
  else if (event.key === "?") { helpOpen.value = true; event.preventDefault(); }
  else if (event.key === "n") { go(""); event.preventDefault(); }
  else if (event.key === "/") { event.preventDefault(); /** @type {HTMLElement} */ (document.querySelector("input[type=search]") ?? document.querySelector("textarea"))?.focus(); }
});

function setTheme() {
  const next = theme.value === "auto" ? "light" : theme.value === "light" ? "dark" : "auto";
  theme.value = next;
  if (next === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  try { next === "auto" ? localStorage.removeItem("theme") : localStorage.setItem("theme", next); } catch { /* storage is blocked */ }
}

function Side() {
  const { view, id } = place.value;
  return html`<nav class="side" aria-label=${t.nav.main} data-open=${drawer.value}>
    <header><a class="brand" href="#/"><${Mark} id="brand" size=${28} /><span>${t.product}</span></a><${IconButton} name="close" label=${t.close} class="icon-button phone-only" onClick=${() => { drawer.value = false; }} /></header>
    <a class="button fresh" href="#/"><${Icon} name="plus" size=${16} />${t.nav.fresh}<kbd>N</kbd></a>
    <ul class="side-nav">${NAV.map(([name, path, icon]) => html`<li key=${name}><a href=${`#/${path}`} aria-current=${(view || "") === path || (path === "agents" && view === "agents") ? "page" : undefined}><${Icon} name=${icon} />${t.nav[name]}${name === "inbox" && waiting.value > 0 && html`<span class="pill" data-status="live" aria-label=${t.nav.waiting(waiting.value)}>${waiting}</span>`}</a></li>`)}</ul>
    ${recent.value.length > 0 && html`<h2>${t.nav.recent}</h2>`}
    <ul class="side-recent">${recent.value.map((session) => html`<li key=${session.id}><a href=${`#/chat/${session.id}`} aria-current=${view === "chat" && id === session.id ? "page" : undefined} title=${titleOf(session)}>${titleOf(session)}</a></li>`)}</ul>
    <footer><button type="button" class="button quiet" onClick=${() => { paletteOpen.value = true; }}><${Icon} name="search" />${t.palette.title}<kbd>Ctrl K</kbd></button>
      <button type="button" class="button quiet" onClick=${setTheme}><${Icon} name="theme" />${t.theme.label}: ${t.theme[theme.value]}</button>
      ${me.value && html`<p class="who"><span title=${me.value.workspace_name}>${me.value.key_name ?? me.value.user_id ?? (me.value.has_credential ? t.signIn.admin : t.signIn.local)}</span>${me.value.has_credential && html`<button type="button" class="button quiet" onClick=${signOut}>${t.signIn.out}</button>`}</p>`}</footer>
  </nav>`;
}

function View() {
  const { view, id, query } = place.value;
  if (problem.value && !agents.value) return html`<main class="page" id="content"><${Trouble} problem=${problem.value} retry=${start} /></main>`;
  switch (view) {
    case "chat": return html`<${Chat} key=${id} id=${id} />`;
    case "agents": return id ? html`<${Agent} key=${id} id=${id} query=${query} />` : html`<${Agents} />`;
    case "sessions": return html`<${Sessions} query=${query} />`;
    case "inbox": return html`<${Inbox} />`;
    case "tools": return html`<${Tools} id=${id} query=${query} />`;
    case "turns": return html`<${TurnPage} key=${id} id=${id} />`;
    case "usage": return html`<${Usage} />`;
    case "system": return html`<${System} />`;
    case "keys": return html`<${Keys} />`;
    default: return html`<${Home} agentId=${query.agent} />`;
  }
}

function App() {
  useEffect(() => { start(); }, []);
  if (signedOut.value) return html`<${SignIn} onDone=${start} /><${Notices} />`;
  return html`<a class="skip" href="#content" onClick=${(event) => { event.preventDefault(); document.querySelector("h1")?.focus(); }}>${t.skip}</a>
    <div class="shell"><header class="topbar"><${MenuButton} /><a class="brand" href="#/">${t.product}</a><a class="icon-button" href="#/" aria-label=${t.nav.fresh}><${Icon} name="plus" /></a></header>
      ${drawer.value && html`<div class="scrim" onClick=${() => { drawer.value = false; }}></div>`}<${Side} /><${View} /></div><${Notices} /><${Question} />
    ${paletteOpen.value && html`<${Palette} places=${NAV} />`}${helpOpen.value && html`<${Help} />`}`;
}

async function signOut() {
  await remove("console/session");
  location.reload(); // nothing of what was read stays in memory
}

async function start() {
  try { problem.value = null; await Promise.all([loadMe(), loadAgents(), loadRecent()]); loadWaiting().catch(() => {}); } catch (error) { problem.value = problemOf(error); }
}

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
