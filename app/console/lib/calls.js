/** Tool calls as the page knows them, from three sources: events of a turn, the ledger, and the parts of a stored message. */

export const WAITING = ["awaiting_approval", "awaiting_output", "awaiting_answer"];
/** @type {Record<string, string>} */
const WAITS_FOR = { approval: "awaiting_approval", output: "awaiting_output", answer: "awaiting_answer" };
/** @type {Record<string, string>} */
const ACTIONS = { awaiting_approval: "approval", awaiting_output: "output", awaiting_answer: "answer" };

/**
 * The calls after an event; `at` is how long the text before a new one is. The same list where the event is of no call.
 * @param {Call[]} calls @param {StreamEvent} event @returns {Call[]}
 */
export function callsAfter(calls, { type, data }, at = 0) {
  /** @param {string} id @param {Partial<Call>} changes */
  const change = (id, changes) => calls.map((call) => (call.id === id ? { ...call, ...changes } : call));
  switch (type) {
    case "tool_call.created": {
      const { call_id: id, ...call } = data;
      return calls.some((other) => other.id === id) ? change(id, call) : [...calls, { id, at, status: "pending", ...call }];
    }
    case "tool_call.started": return change(data.call_id, { status: "running", attempt: data.attempt, action: null, progress: null });
    case "tool_call.progress": return change(data.call_id, { progress: data });
    case "tool_call.completed": return change(data.call_id, { status: data.status, result: data.preview, duration_ms: data.duration_ms, files: data.files, action: null, progress: null });
    case "tool_call.failed": return change(data.call_id, { status: data.status, error: data.error, action: null, progress: null });
    case "action.requested": return change(data.action.call_id, { status: WAITS_FOR[data.action.action], action: data.action });
    case "action.resolved": return change(data.call_id, { resolution: data, action: null });
    default: return calls;
  }
}

/** A call as `GET /turns/{id}` and `GET /tool-calls` show it. @param {ToolCallRow} row @returns {Call} */
export function callOf(row, at = 0) {
  const duration = row.started_at && row.ended_at ? new Date(row.ended_at).getTime() - new Date(row.started_at).getTime() : null;
  const action = WAITING.includes(row.status) ? { action: ACTIONS[row.status], by: row.approval_by ?? "operator", expires_at: row.expires_at, question: row.question } : null;
  return { ...row, at, action, duration_ms: duration, files: (row.files ?? []).map((file) => String(file.file_id)) };
}

/** The calls of a turn, each where it stands in the text: behind the texts of the steps up to its own. @param {Turn} turn */
export function callsOf(turn) {
  return turn.tool_calls.map((row) => callOf(row, turn.steps.filter((step) => step.content && step.number <= row.step).map((step) => step.content).join("\n\n").length));
}

/**
 * What an answer consists of, in order: `{text}`, `{calls}`, `{images}`, `{thoughts}`.
 * Calls that follow each other are one piece.
 * @param {string} text @param {Call[]} calls @returns {Piece[]}
 */
export function piecesOf(text, calls) {
  const pieces = /** @type {Piece[]} */ ([]);
  let from = 0;
  for (const call of calls.toSorted((one, other) => (one.at ?? 0) - (other.at ?? 0))) {
    const words = text.slice(from, call.at).trim();
    if (words) pieces.push({ text: words });
    from = Math.max(from, call.at ?? 0);
    const last = pieces.at(-1);
    if (last?.calls) last.calls.push(call); else pieces.push({ calls: [call] });
    if (call.files?.length) pieces.push({ images: call.files });
  }
  const rest = text.slice(from);
  return rest.trim() || !pieces.length ? [...pieces, { text: pieces.length ? rest.trimStart() : rest }] : pieces;
}

/** The pieces of a stored message. A call of a message has no id: its turn knows it by the model's. @param {any[]} parts @returns {Piece[]} */
export function piecesOfParts(parts) {
  const pieces = /** @type {Piece[]} */ ([]);
  for (const part of parts) {
    const last = pieces.at(-1);
    if (part.type === "text" || part.type === "refusal") pieces.push({ text: part.text.trim() });
    else if (part.type === "reasoning") pieces.push({ thoughts: part.text });
    else if (part.type === "image") { if (last?.images) last.images.push(part.file_id); else pieces.push({ images: [part.file_id] }); }
    else if (part.type === "tool_call") {
      const { call_id: model_call_id, type: _, ...call } = part;
      if (last?.calls) last.calls.push({ model_call_id, ...call }); else pieces.push({ calls: [{ model_call_id, ...call }] });
    }
  }
  return pieces.filter((piece) => piece.text !== "");
}

/** JSON with line breaks; what is no JSON as it is. @param {string | null | undefined} text */
export function pretty(text) {
  try { return JSON.stringify(JSON.parse(text ?? ""), null, 2); } catch { return text ?? ""; }
}

/** The arguments in one line: `number: "2041", amount: 12`. @param {string} text @returns {string} */
export function brief(text) {
  let value;
  try { value = JSON.parse(text || "{}"); } catch { return text; }
  return value && typeof value === "object" && !Array.isArray(value) ? Object.entries(value).map(([name, each]) => `${name}: ${JSON.stringify(each)}`).join(", ") : text;
}
