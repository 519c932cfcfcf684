/** Markdown as nodes, never as HTML: what a model writes cannot become markup. Pictures become links, since an address can carry a chat away. */
import { marked } from "marked";
import { Component } from "preact";
import { html } from "./html.js";
import { CodeBlock } from "./code.js";

/** @typedef {import("marked").Token & Record<string, any>} Token */

/** @param {Token} token */
const isBlock = (token) => token.type !== "space";

/**
 * Lexes a text that grows: what stands before the last three blocks is settled and not looked at again, so each piece
 * costs as much as they are long, and finished blocks keep their nodes (a selection in them survives).
 */
export class Lexer {
  #settled = /** @type {Token[]} */ ([]);
  #cut = 0;
  #text = "";

  /** Return the blocks of `text`, whose beginning is what was given before. `grows`: its end may be half a mark. @param {string} text */
  blocks(text, grows = false) {
    if (!text.startsWith(this.#text)) { this.#settled = []; this.#cut = 0; }
    this.#text = text;
    const tokens = /** @type {Token[]} */ (marked.lexer(text.slice(this.#cut)));
    // Three blocks stay open: what begins as a paragraph ("2") may turn out to be the next item of the list before it ("2. "),
    // and a paragraph, "2. b" and a dash under it are three blocks until the dash turns out to be no underline.
    for (let open = tokens.filter(isBlock).length; open > 3;) {
      const token = /** @type {Token} */ (tokens.shift());
      this.#cut += token.raw.length;
      if (isBlock(token)) { this.#settled.push(token); open--; }
    }
    const open = tokens.at(-1);
    if (grows && open && ["paragraph", "list", "heading"].includes(open.type)) tokens.splice(-1, 1, ...marked.lexer(mended(open.raw)));
    return [...this.#settled, ...tokens.filter(isBlock)];
  }
}

/** Close or hide the mark that a text ends within, so that no raw Markdown flashes by: half a table, link, bold or code. @param {string} text */
function mended(text) {
  const calm = text.replace(/(^|\n)[ \t]*(\|[^\n]*(\n[ |:-]*)?|`{1,2}|[-*_=]{1,2}|#{1,6})$/, "$1").replace(/!?\[([^\]\n]*)(\](\([^)\n]*)?)?$/, "$1").replace(/\*+$/, "");
  for (const mark of ["`", "**"]) if (calm.split(mark).length % 2 === 0) return calm + mark;
  return calm;
}

class Block extends Component {
  /** @param {any} next */
  shouldComponentUpdate(next) { return next.token.raw !== this.props.token.raw; }
  /** @param {any} props */
  render({ token }) { return block(token); }
}

/** @param {{ text: string, lexer?: Lexer, grows?: boolean }} props */
export function Markdown({ text, lexer = new Lexer(), grows }) {
  return lexer.blocks(text, grows).map((token, index) => html`<${Block} key=${index} token=${token} />`);
}

const SAFE = /^(https?:|mailto:|tel:|#|\/(?!\/))/i;
/** @type {Record<string, string>} */
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'", nbsp: "\u00a0" };
/** @param {string} text */
const plain = (text) => text.replace(/&(amp|lt|gt|quot|#39|nbsp);/g, (_match, name) => ENTITIES[name]);
/** @param {Token} token @returns {Children} */
const inner = (token) => (token.tokens ? token.tokens.map(inline) : plain(token.text ?? token.raw));

/** @param {string} href @param {Children} content */
function link(href, content) {
  return SAFE.test(href) ? html`<a href=${href} target="_blank" rel="noopener noreferrer nofollow">${content}</a>` : html`<span>${content}</span>`;
}

/** @param {Token} token @returns {Children} */
function inline(token) {
  switch (token.type) {
    case "strong": return html`<strong>${inner(token)}</strong>`;
    case "em": return html`<em>${inner(token)}</em>`;
    case "del": return html`<del>${inner(token)}</del>`;
    case "codespan": return html`<code>${plain(token.text)}</code>`;
    case "br": return html`<br />`;
    case "link": return link(token.href, inner(token));
    case "image": return link(token.href, token.text || token.href);
    case "checkbox": return html`<input type="checkbox" disabled checked=${token.checked} aria-label="done" />`;
    case "escape": return token.text;
    case "html": return token.raw;
    default: return inner(token);
  }
}

/** @param {Token} token @returns {Children} */
function block(token) {
  switch (token.type) {
    case "heading": { const Tag = `h${Math.min(6, token.depth + 1)}`; return html`<${Tag}>${inner(token)}<//>`; }
    case "code": return html`<${CodeBlock} code=${token.text} language=${token.lang} />`;
    case "blockquote": return html`<blockquote>${token.tokens?.map(block)}</blockquote>`;
    case "hr": return html`<hr />`;
    case "list": {
      const Tag = token.ordered ? "ol" : "ul";
      return html`<${Tag} start=${token.ordered && token.start !== 1 ? token.start : undefined}>
        ${token.items.map((/** @type {Token} */ item) => html`<li>${item.tokens?.map(block)}</li>`)}<//>`;
    }
    case "table": return html`<div class="scroll-x" tabindex="0" role="group" aria-label="Table"><table>
      <thead><tr>${token.header.map((/** @type {Token} */ cell) => html`<th scope="col">${inner(cell)}</th>`)}</tr></thead>
      <tbody>${token.rows.map((/** @type {Token[]} */ row) => html`<tr>${row.map((cell) => html`<td>${inner(cell)}</td>`)}</tr>`)}</tbody></table></div>`;
    case "paragraph": return html`<p>${inner(token)}</p>`;
    case "text": return html`<span>${inner(token)}</span>`;
    case "space": case "def": return null;
    default: return html`<p>${token.raw}</p>`;
  }
}
