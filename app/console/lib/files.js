/** Files on their way into a message: uploaded one by one, each with its progress. */
import { signal } from "@preact/signals";
import { at, newKey, Problem } from "./api.js";
import { drafts, keepDraft } from "./store.js";
import { t } from "../strings.js";

export const MOST_FILES = 8;
const MOST_BYTES = 20_000_000;

/** Where the picture of a stored file is. */
export const contentOf = (fileId) => at(`files/${fileId}/content`).href;

/** One file. `part` is what a message takes once it is stored; `problem` says why it is not. */
export class Upload {
  progress = signal(0);
  problem = signal(null);
  part = signal(null);
  #request = new XMLHttpRequest(); // `fetch` does not tell how far an upload is

  constructor(file) {
    this.key = newKey();
    this.name = file.name || t.files.pasted;
    this.done = this.#send(file).then((part) => { this.part.value = part; }, (problem) => { this.problem.value = problem; });
  }

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

const partOf = (stored) => (stored.width
  ? { type: "image", file_id: stored.id, name: stored.name, width: stored.width, height: stored.height }
  : { type: "file", file_id: stored.id, name: stored.name, text_tokens: stored.text_tokens });

const known = new Map();

/** What is attached to the message that is written in the composer `id`; like its draft it survives a reload, once it is stored. */
export function attachedTo(id) {
  if (!known.has(id)) known.set(id, signal(JSON.parse(drafts.peek()[`files:${id}`] ?? "[]").map((part) => ({ key: part.file_id, name: part.name, part: signal(part), progress: signal(1), problem: signal(null), cancel() {} }))));
  return known.get(id);
}

const keep = (id) => keepDraft(`files:${id}`, attachedTo(id).peek().length ? JSON.stringify(attachedTo(id).peek().map((one) => one.part.peek()).filter(Boolean)) : "");

/** Attach files. Returns how many were left out, since a message takes eight. */
export function attach(id, files) {
  const attached = attachedTo(id);
  const taken = [...files].slice(0, Math.max(0, MOST_FILES - attached.peek().length)).map((file) => new Upload(file));
  attached.value = [...attached.peek(), ...taken];
  for (const upload of taken) upload.done.then(() => keep(id));
  return files.length - taken.length;
}

/** Take one away, or all: they are in a message now. */
export function detach(id, upload) {
  if (upload && !upload.part.peek()) upload.cancel();
  attachedTo(id).value = upload ? attachedTo(id).peek().filter((other) => other !== upload) : [];
  keep(id);
}

/** Put back what was attached: the message could not be sent. */
export function reattach(id, uploads) {
  attachedTo(id).value = uploads;
  keep(id);
}
