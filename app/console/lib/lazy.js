/** Views whose modules and styles are loaded when they are first shown. */
import { useEffect, useState } from "preact/hooks";
import { html } from "./html.js";
import { Trouble } from "./ui.js";

let styles = /** @type {Promise<unknown> | null} */ (null);

/** Load `places.css`, once; a view is shown without it where that fails. */
function loadStyles() {
  styles ??= new Promise((/** @type {(value?: any) => void} */ resolve) => {
    const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "console/places.css", onload: resolve, onerror: resolve });
    document.head.append(link);
  });
  return styles;
}

/** Give the focus to the heading of the place, unless somebody writes. */
export function focusHeading() {
  if (!matchMedia("(hover: hover)").matches || !document.querySelector("textarea:focus")) /** @type {HTMLElement} */ (document.querySelector("h1"))?.focus({ preventScroll: true });
}

/** The view `name` of the module that `load` imports. Where that fails, the page is loaded again: browsers keep a failed import. */
/** @param {() => Promise<any>} load @param {string} name */
export function lazy(load, name) {
  let view = /** @type {any} */ (null);
  return function Lazy(/** @type {any} */ props) {
    const [, draw] = useState(0);
    const [problem, setProblem] = useState(/** @type {Problem | null} */ (null));
    useEffect(() => {
      if (!view) Promise.all([load(), loadStyles()]).then(([module]) => { view = module[name]; draw(1); }, setProblem);
    }, []);
    useEffect(() => { if (view && document.activeElement === document.body) focusHeading(); }, [view]);
    if (view) return html`<${view} ...${props} />`;
    return problem && html`<div class="page"><${Trouble} problem=${problem} retry=${() => location.reload()} /></div>`;
  };
}
