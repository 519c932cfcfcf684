/** Signing in, where the server wants to know who asks. */
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { problemOf, signIn } from "../lib/api.js";
import { html } from "../lib/html.js";
import { Mark } from "../lib/ui.js";
import { t } from "../strings.js";

/** @param {{ onDone: () => void }} props */
export function SignIn({ onDone }) {
  const key = useSignal("");
  const problem = useSignal("");
  useEffect(() => { document.title = `${t.signIn.title} · ${t.product}`; }, []);
  const enter = async (/** @type {Submitted} */ event) => {
    event.preventDefault();
    try {
      await signIn(key.value.trim());
      onDone();
    } catch (caught) {
      const error = problemOf(caught);
      problem.value = error.status === 401 ? t.signIn.wrong : error.message;
    }
  };
  return html`<main class="sign-in" id="content"><form onSubmit=${enter}>
    <${Mark} id="brand" size=${56} /><h1 tabindex="-1">${t.signIn.title}</h1><p class="lead">${t.signIn.lead}</p>
    <label class="field">${t.signIn.key}<input class="input" type="password" required autocomplete="off" autofocus spellcheck=${false} placeholder="ap_…" value=${key.value} aria-invalid=${problem.value ? "true" : undefined} onInput=${(event) => { key.value = event.target.value; problem.value = ""; }} />
      ${problem.value && html`<small data-wrong="true" role="alert">${problem.value}</small>`}</label>
    <button class="button primary" disabled=${!key.value.trim()}>${t.signIn.enter}</button></form></main>`;
}
