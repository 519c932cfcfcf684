/**
 * A client of Agent Platform: streams that resume, and retries that run a turn once.
 *
 * What methods take and return has the fields of the HTTP API; the types are generated from it.
 */
import { NotFound } from "./errors.js";
import type { components, operations, TurnEvent } from "./schema.js";
import { type Call, type RateLimit, Transport } from "./transport.js";
import { EVENTS, type Reply, TurnStream, UNSETTLED } from "./turn-stream.js";

export * from "./errors.js";
export type { components, operations, RateLimit, Reply, TurnEvent };
export { TurnStream };

export type Schemas = components["schemas"];
type Query<Name extends keyof operations> = Omit<
  NonNullable<operations[Name]["parameters"]["query"]>,
  "limit" | "cursor" | "metadata"
>;

export interface Options {
  /** The server's address. In a browser on the same origin: `location.origin`. */
  baseUrl?: string;
  /** A key, or in a browser a session token. */
  apiKey?: string;
  workspaceId?: string;
  /** For how long requests are repeated without progress; 60 by default. */
  retrySeconds?: number;
  fetch?: typeof globalThis.fetch;
}

export interface TextOptions extends SendOptions {
  /** The JSON that the answer must be; `output` of the reply is its value. */
  responseFormat?: Schemas["ResponseFormatFields"];
}

export interface SendOptions {
  onBusy?: Schemas["BusyPolicy"];
  /** Of your own, to repeat a call after a restart of your own process. */
  idempotencyKey?: string;
  /** Ends the waiting; the turn itself goes on. */
  signal?: AbortSignal;
}

/** Text, or parts: texts, images and documents. */
export type MessageContent = Schemas["TextMessageCreate"]["content"];

export interface VoiceReply {
  turnId: string;
  /** What was understood of the recording. */
  transcript: string;
  reply: Reply;
  mp3: Uint8Array;
}

export class AgentPlatform {
  readonly #transport: Transport;

  constructor(options: Options = {}) {
    const headers: Record<string, string> = {};
    if (options.apiKey) headers["Authorization"] = `Bearer ${options.apiKey}`;
    if (options.workspaceId) headers["X-Workspace-Id"] = options.workspaceId;
    const baseUrl = (options.baseUrl ?? "http://127.0.0.1:8000").replace(/\/+$/, "");
    const fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
    this.#transport = new Transport(baseUrl, headers, options.retrySeconds ?? 60, fetch);
  }

  /** The caller's limit, as the last response told it. */
  get rateLimit(): RateLimit | undefined {
    return this.#transport.rateLimit;
  }

  // agents

  createAgent(fields: Schemas["AgentCreate"], idempotencyKey?: string): Promise<Schemas["AgentRead"]> {
    return this.request("POST", "/agents", { json: fields, headers: keyHeader(idempotencyKey) });
  }

  /** All agents, newest first, page by page. */
  listAgents(query: Query<"list_agents"> = {}): AsyncGenerator<Schemas["AgentRead"], void> {
    return this.#list("/agents", query);
  }

  getAgent(agentId: string): Promise<Schemas["AgentRead"]> {
    return this.request("GET", `/agents/${agentId}`);
  }

  /** Change the given fields; `null` resets one to the server's default. */
  updateAgent(agentId: string, changes: Schemas["AgentUpdate"]): Promise<Schemas["AgentRead"]> {
    return this.request("PATCH", `/agents/${agentId}`, { json: changes });
  }

  archiveAgent(agentId: string): Promise<void> {
    return this.request("DELETE", `/agents/${agentId}`);
  }

  // sessions

  /** Create a conversation, or import one with its `messages`. */
  createSession(fields: Schemas["SessionCreate"], idempotencyKey?: string): Promise<Schemas["SessionRead"]> {
    return this.request("POST", "/sessions", { json: fields, headers: keyHeader(idempotencyKey) });
  }

  /** All conversations, newest first, page by page; `metadata` are members that they must have. */
  listSessions(
    query: Query<"list_sessions"> & { metadata?: Record<string, unknown> } = {},
  ): AsyncGenerator<Schemas["SessionRead"], void> {
    const { metadata, ...rest } = query;
    return this.#list("/sessions", metadata ? { ...rest, metadata: JSON.stringify(metadata) } : rest);
  }

  getSession(sessionId: string): Promise<Schemas["SessionHistory"]> {
    return this.request("GET", `/sessions/${sessionId}`);
  }

  /** The messages of a conversation, oldest first, page by page. */
  listMessages(sessionId: string): AsyncGenerator<Schemas["MessageRead"], void> {
    return this.#list(`/sessions/${sessionId}/messages`, {});
  }

  updateSession(sessionId: string, changes: Schemas["SessionUpdate"]): Promise<Schemas["SessionRead"]> {
    return this.request("PATCH", `/sessions/${sessionId}`, { json: changes });
  }

  forkSession(
    sessionId: string,
    fields: Schemas["SessionFork"] = {},
    idempotencyKey?: string,
  ): Promise<Schemas["SessionRead"]> {
    const headers = keyHeader(idempotencyKey);
    return this.request("POST", `/sessions/${sessionId}/fork`, { json: fields, headers });
  }

  deleteSession(sessionId: string): Promise<void> {
    return this.request("DELETE", `/sessions/${sessionId}`);
  }

  /** Create a token for one session, for a browser. */
  createSessionToken(sessionId: string, ttlSeconds = 900): Promise<Schemas["TokenRead"]> {
    const json = { ttl_seconds: ttlSeconds };
    return this.request("POST", `/sessions/${sessionId}/tokens`, { json, isRepeatable: false });
  }

  // files

  /** Upload an image or a document for messages. */
  uploadFile(data: Blob | Uint8Array, name = "file", idempotencyKey?: string): Promise<Schemas["FileRead"]> {
    const blob = data instanceof Blob ? data : new Blob([data as BlobPart]);
    const form = () => {
      const fields = new FormData();
      fields.set("file", blob, name);
      return fields;
    };
    return this.request("POST", "/files", { form, headers: keyHeader(idempotencyKey) });
  }

  /** Delete a file that no message uses. */
  deleteFile(fileId: string): Promise<void> {
    return this.request("DELETE", `/files/${fileId}`);
  }

  // messages

  /** Send a message and return the answer. Throws `TurnFailed`. */
  sendText(sessionId: string, content: MessageContent, options: TextOptions = {}): Promise<Reply> {
    return this.streamText(sessionId, content, options).finalReply();
  }

  /** Send a message and return its events; nothing is sent before they are iterated over. */
  streamText(sessionId: string, content: MessageContent, options: TextOptions = {}): TurnStream {
    const headers = { ...keyHeader(options.idempotencyKey), ...EVENTS };
    const json = textBody(sessionId, content, options);
    const call = { method: "POST", path: "/messages/text", json, headers };
    return new TurnStream(this.#transport, call, options.signal);
  }

  /** Send a message whose turn runs in the background; `waitTurn` waits for its end. */
  startText(sessionId: string, content: MessageContent, options: TextOptions = {}): Promise<Schemas["TurnWithMessage"]> {
    const headers = { ...keyHeader(options.idempotencyKey), Prefer: "respond-async" };
    const json = textBody(sessionId, content, options);
    return this.request("POST", "/messages/text", { json, headers }, options.signal);
  }

  /** Send a recording (wav, mp3, m4a, webm, ogg, flac) and return the spoken answer. */
  async sendVoice(sessionId: string, audio: Blob | Uint8Array, options: SendOptions = {}): Promise<VoiceReply> {
    const stream = this.streamVoice(sessionId, audio, options);
    const reply = await stream.finalReply();
    const turnId = stream.turnId ?? "";
    let mp3: Uint8Array;
    try {
      mp3 = await this.getTurnAudio(turnId);
    } catch (error) {
      if (!(error instanceof NotFound)) throw error;
      mp3 = stream.mp3; // the server keeps no sound: the sentences one after the other
    }
    return { turnId, transcript: stream.transcript ?? "", reply, mp3 };
  }

  /** Send a recording and return its events: transcript, text, a clip for each sentence. */
  streamVoice(sessionId: string, audio: Blob | Uint8Array, options: SendOptions = {}): TurnStream {
    const blob = audio instanceof Blob ? audio : new Blob([audio as BlobPart]);
    const form = () => {
      const fields = new FormData();
      fields.set("session_id", sessionId);
      fields.set("on_busy", options.onBusy ?? "enqueue");
      fields.set("audio", blob, "recording");
      return fields;
    };
    const headers = { ...keyHeader(options.idempotencyKey), ...EVENTS };
    const call = { method: "POST", path: "/messages/voice", form, headers };
    return new TurnStream(this.#transport, call, options.signal);
  }

  // turns

  /** Turns, newest first, page by page. */
  listTurns(query: Query<"list_turns"> = {}): AsyncGenerator<Schemas["TurnRead"], void> {
    return this.#list("/turns", query);
  }

  getTurn(turnId: string): Promise<Schemas["TurnWithMessage"]> {
    return this.request("GET", `/turns/${turnId}`);
  }

  /** Return a turn once it does not run any more, over lost connections and restarts. */
  async waitTurn(turnId: string, signal?: AbortSignal): Promise<Schemas["TurnWithMessage"]> {
    for (;;) {
      const options = { query: { wait_seconds: 25 } };
      const turn = await this.request<Schemas["TurnWithMessage"]>("GET", `/turns/${turnId}`, options, signal);
      if (!UNSETTLED.has(turn.status)) return turn;
    }
  }

  /** The events of a turn above `after`, until its end. */
  followTurn(turnId: string, after = 0, signal?: AbortSignal): TurnStream {
    const call = { method: "GET", path: `/turns/${turnId}/events`, headers: EVENTS };
    return new TurnStream(this.#transport, call, signal, turnId, after);
  }

  /** Cancel a turn; `playedMs` says how much of its sound was heard. */
  cancelTurn(turnId: string, playedMs?: number): Promise<Schemas["TurnWithMessage"]> {
    const json = playedMs === undefined ? {} : { played_ms: playedMs };
    return this.request("POST", `/turns/${turnId}/cancel`, { json, isRepeatable: true });
  }

  /** Send the output of a tool of your own, approve or deny a call, or answer a question; a stream goes on by itself. */
  resolveToolCall(callId: string, action: Schemas["ToolCallResolve"]): Promise<Schemas["ToolCallDetail"]> {
    return this.request("POST", `/tool-calls/${callId}/resolution`, { json: action, isRepeatable: true });
  }

  /** Return the spoken answer of a turn as MP3. */
  async getTurnAudio(turnId: string): Promise<Uint8Array> {
    const response = await this.#transport.send({ method: "GET", path: `/turns/${turnId}/audio` });
    return new Uint8Array(await response.arrayBuffer());
  }

  getUsage(query: NonNullable<operations["get_usage"]["parameters"]["query"]> = {}): Promise<Schemas["UsageRowRead"][]> {
    return this.request("GET", "/usage", { query });
  }

  /** Send any request and return its JSON; a POST without a key is not repeated once it was sent. */
  async request<T = unknown>(
    method: string,
    path: string,
    options: Omit<Call, "method" | "path"> = {},
    signal?: AbortSignal,
  ): Promise<T> {
    const isRepeatable = method !== "POST" || "Idempotency-Key" in (options.headers ?? {});
    const response = await this.#transport.send({ method, path, isRepeatable, ...options }, signal);
    const text = await response.text();
    return (text ? JSON.parse(text) : undefined) as T;
  }

  async *#list<T>(path: string, query: Record<string, unknown>): AsyncGenerator<T, void> {
    let call: Call | undefined = { method: "GET", path, query: { limit: 100, ...query } };
    while (call) {
      const response: Response = await this.#transport.send(call);
      yield* (await response.json()) as T[];
      const next = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("link") ?? "")?.[1];
      call = next ? { method: "GET", path: next } : undefined;
    }
  }
}

function textBody(sessionId: string, content: MessageContent, { onBusy = "enqueue", responseFormat }: TextOptions): object {
  return { session_id: sessionId, content, on_busy: onBusy, response_format: responseFormat };
}

function keyHeader(idempotencyKey: string | undefined): Record<string, string> {
  return { "Idempotency-Key": idempotencyKey ?? randomKey() };
}

/** As `crypto.randomUUID`, which browsers have on secure origins alone. */
function randomKey(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
}
