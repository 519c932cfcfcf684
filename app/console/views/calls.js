/** Tool calls in an answer, and what somebody must do before the turn goes on. */
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, lookNow, post, problemOf } from "../lib/api.js";
import { brief, callOf, pretty } from "../lib/calls.js";
import { duration, exactly } from "../lib/format.js";
import { html } from "../lib/html.js";
import { CopyButton, Icon } from "../lib/ui.js";
import { t } from "../strings.js";

const turns = /** @type {Map<string, Promise<Turn | null>>} */ (new Map()); // of messages that were read: their calls are asked for when one is opened

/** @param {string} id */
const turnOf = (id) => {
  const turn = turns.get(id) ?? /** @type {Promise<Turn>} */ (get(`turns/${id}`)).catch(() => { turns.delete(id); return null; });
  turns.set(id, turn);
  return turn;
};

/**
 * Calls of one step, in their order. `talk` is the conversation, where what is found out can be said.
 * @param {{ calls: Call[], turnId?: string | null, talk?: Conversation }} props
 */
export function Calls({ calls, turnId, talk }) {
  return html`<div class="calls">${calls.map((call, index) => html`<${Call} key=${call.id ?? call.model_call_id ?? index} call=${call} turnId=${turnId} talk=${talk} />`)}</div>`;
}

/** @param {{ call: Call, turnId?: string | null, talk?: Conversation }} props */
function Call({ call: given, turnId, talk }) {
  const row = useSignal(/** @type {Call | null} */ (null)); // as the ledger has it
  const whole = useSignal(/** @type {string | null} */ (null));
  const call = row.value && !given.action ? { ...given, ...row.value } : given;
  const open = async (/** @type {Submitted} */ event) => {
    if (!event.target.open || row.value || !turnId || given.action || ["running", "pending"].includes(given.status)) return;
    const turn = await turnOf(turnId);
    const found = turn?.tool_calls.find((one) => (given.id ? one.id === given.id : one.model_call_id === given.model_call_id && one.name === given.name));
    if (found) row.value = callOf(found);
  };
  const readWhole = async () => { whole.value = (await get(`tool-calls/${call.id}`)).stored_result; };
  const { status, progress, error, resolution } = call;
  return html`<div class="call" data-status=${status}>
    <details onToggle=${open}>
      <summary><${Icon} name="tool" size=${16} /><code>${call.name}</code><span class="call-brief">${brief(call.arguments)}</span>
        <span class="pill" data-status=${status}>${t.calls.status[status] ?? status}</span>${call.duration_ms !== null && call.duration_ms !== undefined && html`<b>${duration(call.duration_ms)}</b>`}</summary>
      <div class="call-body">
        <${Text} title=${t.calls.arguments} text=${pretty(call.arguments)} />
        ${error && html`<p class="state" data-kind="bad"><code>${error.code}</code> ${error.detail}</p>`}
        ${call.result && html`<${Text} title=${t.calls.result} text=${pretty(whole.value ?? call.result)} />`}
        ${call.id && !whole.value && / characters left out ...\]/.test(call.result ?? "") && html`<button type="button" class="button" onClick=${readWhole}>${t.calls.whole}</button>`}
        <p class="quiet">${[call.kind && t.calls.kinds[call.kind], call.effect && t.calls.effects[call.effect], (call.attempt ?? 0) > 1 && call.attempt && t.calls.attempt(call.attempt), resolution && t.calls.resolved(t.calls.decisions[resolution.decision] ?? resolution.decision, resolution.by), resolution?.reason && `“${resolution.reason}”`, call.started_at && exactly(call.started_at)].filter(Boolean).join(" · ")}</p>
      </div>
    </details>
    ${progress && html`<p class="call-progress"><progress aria-label=${call.name} value=${progress.total ? progress.progress / progress.total : undefined}></progress>${progress.message}</p>`}
    ${call.action && call.id && html`<${Action} call=${call} />`}
    ${status === "unknown" && html`<${Unknown} call=${call} talk=${talk} />`}
  </div>`;
}

/** @param {{ title: string, text: string }} props */
const Text = ({ title, text }) => html`<figure class="call-text"><figcaption>${title}<${CopyButton} text=${text} size=${16} /></figcaption><pre tabindex="0" role="group" aria-label=${title}>${text}</pre></figure>`;

/** Nobody can tell whether it was done: who has looked says so, and the agent knows. @param {{ call: Call, talk?: Conversation }} props */
function Unknown({ call, talk }) {
  const say = (/** @type {boolean} */ wasDone) => talk?.say(t.calls.known(call.name, brief(call.arguments), wasDone)).catch(() => {});
  return html`<div class="action" role="group" aria-label=${t.calls.unknown}><p>${t.calls.unknownLead}</p>
    ${talk && html`<footer><button type="button" class="button" onClick=${() => say(true)}>${t.calls.wasDone}</button><button type="button" class="button" onClick=${() => say(false)}>${t.calls.wasNotDone}</button></footer>`}</div>`;
}

/** The action that a call waits for. What is shown is what will be done: an approval is for these arguments. @param {{ call: Call, onDone?: () => void }} props */
export function Action({ call, onDone }) {
  const busy = useSignal(false);
  const problem = useSignal(/** @type {Problem | null} */ (null));
  if (!call.action) return null;
  const { action, by, expires_at: expires, question } = call.action;
  const resolve = async (/** @type {unknown} */ body) => {
    busy.value = true;
    problem.value = null;
    try {
      await post(`tool-calls/${call.id}/resolution`, body, null);
      onDone?.();
    } catch (error) { problem.value = problemOf(error); busy.value = false; }
    lookNow();
  };
  const View = action === "approval" ? Approval : action === "output" ? Output : Answer;
  return html`<section class="action" aria-label=${t.calls.actions[action]}>
    <h2>${t.calls.actions[action]}<small>${[action === "approval" && by === "user" ? t.calls.byUser : "", expires && t.calls.until(exactly(expires))].filter(Boolean).join(" · ")}</small></h2>
    <${View} call=${call} question=${question} resolve=${resolve} busy=${busy.value} />
    ${problem.value && html`<p class="state" data-kind="bad" role="alert">${problem.value.message} <code>${problem.value.code}</code></p>`}
  </section>`;
}

/** @typedef {{ call: Call, question: Action["question"], resolve: (body: unknown) => void, busy: boolean }} ActionProps */

/** @param {ActionProps} props */
function Approval({ call, resolve, busy }) {
  const declines = useSignal(false);
  const reason = useRef(/** @type {any} */ (null));
  useEffect(() => { if (declines.value) reason.current.focus(); }, [declines.value]);
  return html`<${Text} title=${`${call.name} · ${t.calls.arguments}`} text=${pretty(call.arguments)} />
    ${declines.value
      ? html`<form onSubmit=${(event) => { event.preventDefault(); const why = reason.current.value.trim(); resolve({ decision: "deny", ...(why && { reason: why }) }); }}>
        <label class="field">${t.calls.reason}<input ref=${reason} class="input" maxlength="2000" placeholder=${t.calls.reasonHint} /></label>
        <footer><button type="button" class="button" onClick=${() => { declines.value = false; }}>${t.cancel}</button><button class="button danger" disabled=${busy}>${t.calls.decline}</button></footer></form>`
      : html`<footer><button type="button" class="button" disabled=${busy} onClick=${() => { declines.value = true; }}>${t.calls.decline}</button><button type="button" class="button primary" disabled=${busy} onClick=${() => resolve({ decision: "approve" })}>${t.calls.approve}</button></footer>`}`;
}

/** What the caller's own code would send: JSON, or text where it is none. @param {ActionProps} props */
function Output({ call, resolve, busy }) {
  const area = useRef(/** @type {any} */ (null));
  const send = (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const { value: text } = area.current;
    let output = text;
    try { output = JSON.parse(text); } catch { /* a text */ }
    resolve({ output });
  };
  return html`<${Text} title=${`${call.name} · ${t.calls.arguments}`} text=${pretty(call.arguments)} />
    <form onSubmit=${send}><label class="field">${t.calls.output}<textarea ref=${area} class="input code-input" rows="3" placeholder='{"ok": true}' required></textarea><small>${t.calls.outputHelp}</small></label>
    <footer><button type="button" class="button" disabled=${busy} onClick=${() => { if (area.current.reportValidity()) resolve({ error: area.current.value }); }}>${t.calls.sendError}</button><button class="button primary" disabled=${busy}>${t.calls.sendOutput}</button></footer></form>`;
}

/** A question of an MCP server: a form by its schema, or an address that is shown and never opened by itself. @param {ActionProps} props */
function Answer({ question, resolve, busy }) {
  const form = useRef(/** @type {any} */ (null));
  const fields = /** @type {[string, any][]} */ (Object.entries(question?.form?.properties ?? {}));
  const required = question?.form?.required ?? [];
  const send = (/** @type {Submitted} */ event) => {
    event.preventDefault();
    const content = /** @type {Record<string, unknown>} */ ({});
    for (const [name, { type }] of fields) {
      const { value, checked } = form.current.elements[name];
      if (type === "boolean") content[name] = checked;
      else if (value !== "") content[name] = type === "number" || type === "integer" ? Number(value) : value;
    }
    resolve({ answer: question?.form ? { action: "accept", content } : { action: "accept" } });
  };
  return html`<form ref=${form} onSubmit=${send}><p class="asked">${question?.message}</p>${question?.url && html`<p>${t.calls.visit} <code>${question.url}</code></p>`}
    ${fields.map(([name, field]) => {
      const label = field.title ?? name;
      const must = required.includes(name);
      if (field.type === "boolean") return html`<label class="check" key=${name}><input type="checkbox" name=${name} checked=${field.default} />${label}</label>`;
      const options = field.enum ?? field.oneOf?.map((/** @type {any} */ one) => one.const);
      return html`<label class="field" key=${name}>${label}${options
        ? html`<select class="input" name=${name} required=${must}><option value=""></option>${options.map((/** @type {string} */ one, /** @type {number} */ index) => html`<option key=${one} value=${one}>${field.enumNames?.[index] ?? field.oneOf?.[index]?.title ?? one}</option>`)}</select>`
        : html`<input class="input" name=${name} required=${must} type=${["number", "integer"].includes(field.type) ? "number" : "text"} step=${field.type === "number" ? "any" : undefined} min=${field.minimum} max=${field.maximum} maxlength=${field.maxLength} value=${field.default} />`}${field.description && html`<small>${field.description}</small>`}</label>`;
    })}
    <footer><button type="button" class="button quiet" disabled=${busy} onClick=${() => resolve({ answer: { action: "cancel" } })}>${t.cancel}</button><button type="button" class="button" disabled=${busy} onClick=${() => resolve({ answer: { action: "decline" } })}>${t.calls.decline}</button><button class="button primary" disabled=${busy}>${t.calls.answer}</button></footer></form>`;
}
