/**
 * A chat for a page of another site:
 *
 *   <script src="https://your-server/embed.js" data-token="st_..." async></script>
 *
 * The token is of one session (`POST /sessions/{id}/tokens`), and the site is one of `CORS_ORIGINS`. `data-title`, `data-accent` (a
 * colour), `data-open` and `data-renew` (an address of the site's own that answers `{"token"}` when the token has expired) are
 * optional. All of it is in a shadow root, so that neither page nor chat changes how the other looks.
 */
(() => {
  const script = /** @type {HTMLScriptElement} */ (document.currentScript);
  const server = new URL(".", script.src);
  const { title = "Chat", accent = "", renew, open } = script.dataset;
  let { token } = script.dataset;

  const STYLE = `
    :host { all: initial; position: fixed; z-index: 2147483000; right: max(16px, env(safe-area-inset-right)); bottom: max(16px, env(safe-area-inset-bottom)); color-scheme: light dark; --accent: light-dark(#0e6b56, #74d3b5); --on-accent: light-dark(#fff, #06251c); --paper: light-dark(#fbfaf7, #151513); --surface: light-dark(#fff, #1d1d1a); --hover: light-dark(#ebe8df, #292924); --line: light-dark(#8d8779, #7d786b); --ink: light-dark(#1c1b18, #f2efe7); --ink-3: light-dark(#686356, #a09a8b); --bad: light-dark(#ad2318, #ff9d91); }
    * { box-sizing: border-box; margin: 0; font: 15px/1.5 system-ui, sans-serif; }
    button { border: 0; cursor: pointer; color: inherit; background: none; }
    :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
    .launch { display: grid; place-items: center; width: 56px; height: 56px; margin-left: auto; border-radius: 28px; background: var(--accent); color: var(--on-accent); box-shadow: 0 4px 16px rgb(0 0 0 / 25%); }
    svg { width: 24px; height: 24px; fill: none; stroke: currentColor; stroke-width: 1.7; stroke-linecap: round; stroke-linejoin: round; }
    [role=dialog] { display: flex; flex-direction: column; width: min(380px, calc(100vw - 32px)); height: min(560px, calc(100dvh - 110px)); margin-bottom: 12px; overflow: hidden; border: 1px solid var(--line); border-radius: 16px; background: var(--paper); color: var(--ink); box-shadow: 0 8px 32px rgb(0 0 0 / 25%); }
    [hidden] { display: none !important; }
    header { display: flex; align-items: center; justify-content: space-between; padding: 10px 10px 10px 16px; border-bottom: 1px solid var(--hover); }
    h2 { font-weight: 600; }
    header button, form button { display: grid; place-items: center; flex: none; width: 40px; height: 40px; border-radius: 20px; } header button:hover { background: var(--hover); }
    .thread { flex: 1; min-height: 0; overflow-y: auto; padding: 16px; } .thread > * + * { margin-top: 14px; }
    .said { width: fit-content; max-width: 85%; margin-left: auto; padding: 8px 14px; border-radius: 16px 16px 4px; background: var(--hover); }
    .said, .answer { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
    .note { color: var(--ink-3); } .bad { color: var(--bad); }
    form { display: flex; align-items: end; gap: 8px; margin: 0 12px 12px; padding: 4px; border: 1px solid var(--line); border-radius: 16px; background: var(--surface); }
    form:focus-within { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
    textarea { flex: 1; min-width: 0; max-height: 120px; padding: 9px 10px; border: 0; outline: none; background: none; color: inherit; font-size: 16px; resize: none; field-sizing: content; }
    textarea:focus-visible { outline: none; } ::placeholder { color: var(--ink-3); opacity: 1; }
    form button { background: var(--accent); color: var(--on-accent); } form button:disabled { background: var(--hover); color: var(--ink-3); cursor: default; }
    .unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }`;

  /** @param {string} name @param {Record<string, any>} attributes @param {(Node | string)[]} children */
  function node(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) key in made ? /** @type {any} */ (made)[key] = value : made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  /** @param {string} d */
  function icon(d) {
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg");
    svg.setAttribute("viewBox", "0 0 20 20");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", d);
    svg.append(path);
    return svg;
  }

  const host = document.createElement("div");
  const root = host.attachShadow({ mode: "open" });
  const sheet = new CSSStyleSheet(); // needs no `style-src` of the page
  sheet.replaceSync(STYLE);
  root.adoptedStyleSheets = [sheet];
  if (accent) host.style.setProperty("--accent", accent);
  const thread = node("div", { className: "thread", tabIndex: 0, role: "log", "aria-label": title });
  const area = /** @type {HTMLTextAreaElement} */ (node("textarea", { rows: 1, "aria-label": "Message", placeholder: "Message" }));
  const send = /** @type {HTMLButtonElement} */ (node("button", { type: "submit", "aria-label": "Send", title: "Send", disabled: true }, icon("M10 16V4.5M5 9l5-5 5 5")));
  const form = node("form", {}, area, send);
  const close = node("button", { type: "button", "aria-label": "Close", title: "Close" }, icon("M5 5l10 10M15 5 5 15"));
  const status = node("div", { className: "unseen", role: "status" });
  const panel = node("div", { role: "dialog", "aria-label": title, hidden: true }, node("header", {}, node("h2", { textContent: title }), close), thread, form, status);
  const launch = node("button", { type: "button", className: "launch", "aria-label": title, title, "aria-expanded": "false" }, icon("M3.5 4.5h13v9H9l-3.5 3v-3h-2z"));
  root.append(panel, launch);

  /** @param {string} path @param {RequestInit} options @returns {Promise<Response>} */
  async function ask(path, options = {}, mayRenew = true) {
    const response = await fetch(new URL(path, server), { ...options, headers: { ...options.headers, Authorization: `Bearer ${token}` }, credentials: "omit" });
    if (response.status === 401 && renew && mayRenew) {
      ({ token } = await (await fetch(renew)).json());
      return ask(path, options, false);
    }
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail ?? "That did not work."), { isFinal: response.status !== 503 });
  }

  /** Say something at the end of the thread; the reader is followed to it only from the end. @param {string} kind @param {string} text */
  function say(kind, text) {
    const atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
    const line = node("p", { className: kind, textContent: text });
    thread.append(line);
    if (atEnd || kind === "said") thread.scrollTop = thread.scrollHeight;
    return line;
  }

  /** @param {any} error */
  const complain = (error) => say("bad", error.message).setAttribute("role", "alert");

  let session = /** @type {Promise<string> | null} */ (null);
  /** The session's id, once its history is shown. */
  const opened = () => (session ??= load().catch((error) => { session = null; throw error; }));
  async function load() {
    const { session_id: id } = await (await ask("me")).json();
    const messages = await (await ask(`sessions/${id}/messages?order=desc&limit=50`)).json();
    for (const { role, content, status: state, turn_id: turn } of messages.reverse()) {
      if (role === "user") say("said", content);
      else if (state === "in_progress") follow(turn, { path: `turns/${turn}/events` }).catch(complain);
      else if (content) say("answer", content);
    }
    return id;
  }

  /** @param {number} ms */
  const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

  /** Show a turn as it is answered, to its end, also over lost connections. @param {string | null} turn @param {{ path: string, options?: RequestInit }} request */
  async function follow(turn, { path, options = {} }) {
    const line = say("note", "…");
    let [after, text, failures] = [0, "", 0];
    /** @param {string} words */
    const show = (words, kind = "answer") => { const atEnd = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80; line.textContent = words; line.className = kind; if (atEnd) thread.scrollTop = thread.scrollHeight; };
    for (;;) {
      try {
        const response = await ask(turn ? `turns/${turn}/events?after=${after}` : path, { ...(turn ? {} : options), headers: { Accept: "text/event-stream", ...(turn ? {} : options.headers) } });
        const reader = /** @type {ReadableStream<BufferSource>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
        for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
          const blocks = (rest + part.value).split("\n\n");
          rest = blocks.pop() ?? "";
          for (const block of blocks) {
            const data = /^data: ?(.*)$/m.exec(block)?.[1];
            const type = /^event: ?(.*)$/m.exec(block)?.[1];
            const number = Number(/^id: ?(.*)$/m.exec(block)?.[1] ?? 0);
            if (!data || (number && number <= after)) continue;
            [after, failures] = [number || after, 0];
            const value = JSON.parse(data);
            turn ??= value.turn_id;
            if (type === "turn.in_progress") text = "";
            else if (type === "output_text.delta") { text += value.delta; show(text); }
            else if (type === "turn.requires_action") show(text || "Somebody has to approve this first…", text ? "answer" : "note");
            else if (type === "turn.completed" || type === "turn.cancelled") { show(value.message.content || "…"); status.textContent = value.message.content; return; }
            else if (type === "turn.failed") { if (text) show(text); else line.remove(); say("bad", value.error.detail).setAttribute("role", "alert"); return; }
          }
        }
      } catch (/** @type {any} */ error) {
        if (error.isFinal) { line.remove(); throw error; }
      }
      await pause(Math.min(8000, 250 * 2 ** failures++));
    }
  }

  const newKey = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let busy = false;
  /** @param {Event} [event] */
  async function submit(event) {
    event?.preventDefault();
    const words = area.value.trim();
    if (!words || busy) return;
    busy = true;
    area.value = "";
    send.disabled = true;
    let mine;
    try {
      const id = await opened();
      mine = say("said", words);
      const options = { method: "POST", headers: { "Content-Type": "application/json", "Idempotency-Key": newKey() }, body: JSON.stringify({ session_id: id, content: words }) };
      await follow(null, { path: "messages/text", options });
    } catch (error) {
      mine?.remove(); // it was not taken: the words go back
      area.value ||= words;
      complain(error);
    }
    busy = false;
    send.disabled = !area.value.trim();
  }

  /** @param {boolean} shows */
  function toggle(shows, takesFocus = true) {
    panel.hidden = !shows;
    launch.hidden = shows;
    launch.setAttribute("aria-expanded", String(shows));
    if (takesFocus) (shows ? area : launch).focus();
    if (shows) opened().catch(complain);
  }
  form.addEventListener("submit", submit);
  area.addEventListener("input", () => { send.disabled = busy || !area.value.trim(); });
  area.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) submit(event); });
  panel.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); toggle(false); } });
  launch.addEventListener("click", () => toggle(true));
  close.addEventListener("click", () => toggle(false));
  document.body ? document.body.append(host) : addEventListener("DOMContentLoaded", () => document.body.append(host));
  if (open !== undefined) toggle(true, false);
})();
