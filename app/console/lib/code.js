/** A block of code with its language and a copy button. Words are coloured by kind, once the block is shown. */
import { html } from "./html.js";
import { CopyButton } from "./ui.js";
import { t } from "../strings.js";

const KINDS = /(?<comment>(?:\/\/|#|--)(?=\s|!).*|\/\*[\s\S]*?\*\/)|(?<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`)|(?<number>\b\d[\d_.]*\b)|(?<word>\b(?:and|as|async|await|break|case|class|const|continue|def|do|elif|else|except|export|extends|finally|fn|for|from|func|function|if|import|in|interface|is|lambda|let|match|new|not|null|or|pass|raise|return|self|static|struct|super|switch|this|throw|try|type|var|void|while|with|yield|None|True|False|true|false|select|from|where|insert|update|delete)\b)/g;
const LONGEST = 20_000;

/** @param {string} code */
function coloured(code) {
  if (code.length > LONGEST) return code;
  const pieces = /** @type {Children[]} */ ([]);
  let end = 0;
  for (const match of code.matchAll(KINDS)) {
    pieces.push(code.slice(end, match.index), html`<span class=${`code-${Object.entries(match.groups ?? {}).find(([, found]) => found)?.[0]}`}>${match[0]}</span>`);
    end = match.index + match[0].length;
  }
  return [...pieces, code.slice(end)];
}

/** @param {{ code: string, language?: string }} props */
export function CodeBlock({ code, language }) {
  const name = (language ?? "").split(/\s/, 1)[0];
  return html`<figure class="code"><figcaption>${name || "text"}<${CopyButton} text=${code} label=${t.chat.copyCode} size=${16} /></figcaption>
    <pre tabindex="0" role="group" aria-label=${name || "code"}><code>${coloured(code)}</code></pre></figure>`;
}
