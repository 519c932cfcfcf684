/** Files on their way into a message: uploaded one by one, each with its progress. */
import { signal } from "@preact/signals";
import { at, newKey, Problem } from "./api.js";
import { drafts, keepDraft } from "./store.js";
import { t } from "../strings.js";

export const MOST_FILES = 8;
const MOST_BYTES = 20_000_000;

/** Where the picture of a stored file is. @param {string} fileId */
export const contentOf = (fileId) => at(`files/${fileId}/content`).href;

/** One file. `part` is what a message takes once it is stored; `problem` says why it is not. */
export class Upload {
  progress = signal(0);
  problem = signal(/** @type {Error | null} */ (null));
  part = signal(/** @type {FilePart | null} */ (null));
  #request = new XMLHttpRequest(); // `fetch` does not tell how far an upload is

  /** @param {File} file */
  constructor(file) {
    this.key = newKey();
    this.name = file.name || t.files.pasted;
    this.done = this.#send(file).then((part) => { this.part.value = part; }, (problem) => { this.problem.value = problem; });
  }

  /** @param {File} file @returns {Promise<FilePart>} */
  #send(file) {
    return new Promise((resolve, reject) => {
      if (file.size > MOST_BYTES) { reject(new Problem({ detail: t.files.large })); return; }
      const body = new FormData();
      body.append("file", file, this.name);
      const request = this.#request;
      request.open("POST", at("files"));
      request.setRequestHeader("Idempotency-Key", this.key);
      request.responseType = "json";
      request.upload.onprogress = ({ loaded, total }) => { this.progress.value = loaded / total; };
      request.onerror = () => reject(new Problem({ code: "unreachable", detail: t.unreachable }));
      request.onload = () => (request.status < 300 ? resolve(partOf(request.response)) : reject(new Problem(request.response ?? {})));
      request.send(body);
    });
  }

  cancel() { this.#request.abort(); }
}

/** @param {Schemas["FileRead"]} stored @returns {FilePart} */
const partOf = (stored) => (stored.width
  ? { type: "image", file_id: stored.id, name: stored.name, width: stored.width, height: stored.height }
  : { type: "file", file_id: stored.id, name: stored.name, text_tokens: stored.text_tokens });

const known = /** @type {Map<string, Signal<Attachment[]>>} */ (new Map());

/**
 * What is attached to the message that is written in the composer `id`; like its draft it survives a reload, once it is stored.
 * @param {string} id
 */
export function attachedTo(id) {
  const stored = /** @type {FilePart[]} */ (JSON.parse(drafts.peek()[`files:${id}`] ?? "[]"));
  if (!known.has(id)) known.set(id, signal(stored.map((part) => ({ key: part.file_id, name: part.name, part: signal(part), progress: signal(1), problem: signal(null), cancel() {} }))));
  return /** @type {Signal<Attachment[]>} */ (known.get(id));
}

/** @param {string} id */
const keep = (id) => keepDraft(`files:${id}`, attachedTo(id).peek().length ? JSON.stringify(attachedTo(id).peek().map((one) => one.part.peek()).filter(Boolean)) : "");

/** Attach files. Returns how many were left out, since a message takes eight. @param {string} id @param {FileList | File[]} files */
export function attach(id, files) {
  const attached = attachedTo(id);
  const taken = [...files].slice(0, Math.max(0, MOST_FILES - attached.peek().length)).map((file) => new Upload(file));
  attached.value = [...attached.peek(), ...taken];
  for (const upload of taken) upload.done.then(() => keep(id));
  return files.length - taken.length;
}

/** Take one away, or all: they are in a message now. @param {string} id @param {Attachment} [upload] */
export function detach(id, upload) {
  if (upload && !upload.part.peek()) upload.cancel();
  attachedTo(id).value = upload ? attachedTo(id).peek().filter((other) => other !== upload) : [];
  keep(id);
}

/** Put back what was attached: the message could not be sent. @param {string} id @param {Attachment[]} uploads */
export function reattach(id, uploads) {
  attachedTo(id).value = uploads;
  keep(id);
}
