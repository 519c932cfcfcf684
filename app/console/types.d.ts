/** Types for `tsc --checkJs`; no browser loads this file. What the server sends is typed by its OpenAPI document. */

declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare const sampleRate: number; // of an audio worklet's context, in Hz
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

type Schemas = import("../../clients/typescript/src/schema").components["schemas"];
type Signal<T> = import("@preact/signals").Signal<T>;
type Ref<T> = import("preact").RefObject<T>;
type Problem = import("./lib/api.js").Problem;
type Conversation = import("./lib/conversation.js").Conversation;
type LiveTurn = import("./lib/conversation.js").LiveTurn;
type Speaker = import("./lib/audio.js").Speaker;
type Lexer = import("./lib/markdown.js").Lexer;

type Agent = Schemas["AgentRead"];
type AgentTool = Agent["tools"][number];
type AgentVersion = Schemas["AgentVersionRead"];
type Budget = Schemas["BudgetRead"];
type Caller = Schemas["CallerRead"];
type Key = Schemas["KeyRead"];
type KeyWithSecret = Schemas["KeyWithSecret"];
type McpServer = Schemas["McpServerRead"];
type Secret = Schemas["SecretRead"];
type Session = Schemas["SessionRead"];
/** A session of a list has its first words, and what a search found. */
type ListedSession = Session & Partial<Pick<Schemas["SessionListed"], "preview" | "match">>;
type SystemState = Schemas["SystemRead"];
type Tool = Schemas["ToolRead"];
type ToolCallRow = Schemas["ToolCallRead"];
type ToolPolicy = Schemas["ToolPolicyRead"];
type Turn = Schemas["TurnWithMessage"];
type UsageRow = Schemas["UsageRowRead"];
type Part = NonNullable<Schemas["HistoryMessageRead"]["parts"]>[number];

/** A form that is sent, whose fields are `target.elements`. */
interface Submitted extends Event {
  readonly target: any;
}

/** What a template takes; the last is a handler of events, or draws a part. */
type Html = string | number | bigint | boolean | object | null | undefined | ((event: any, ...more: any[]) => any);
type Children = import("preact").ComponentChildren;

/** A turn's stages in milliseconds from its acceptance, as the server reports them. */
interface Timings {
  queue_ms?: number;
  stt_ms?: number;
  first_token_ms?: number;
  first_sentence_ms?: number;
  first_audio_ms?: number;
  total_ms?: number;
}

/** What a turn took, wherever it is read from. */
interface TurnLike {
  timings?: Timings | null;
  created_at?: string | null;
  started_at?: string | null;
  modality?: string;
}

interface Span {
  stage: Stage;
  from: number;
  to: number;
}
type Stage = "queued" | "hearing" | "thinking" | "writing" | "voicing" | "speaking";

/** A message as it is shown: stored, or made by this page and not read back yet. */
interface Message {
  id: string;
  seq: number;
  role: string;
  content: string;
  status: string;
  modality: string;
  created_at: string;
  turn_id?: string | null;
  parts?: Part[] | null;
  output?: unknown;
  heard_content?: string | null;
  usage?: Schemas["TurnUsageRead"] | null;
  timings?: Timings | null;
  error?: { code: string; detail: string } | null;
  live?: LiveTurn;
  durationMs?: number;
}

/** A call of a tool: as the ledger has it, or as events or a message tell of it. */
interface Call extends Partial<Omit<ToolCallRow, "files" | "error" | "status">> {
  name: string;
  arguments: string;
  status: string;
  at?: number;
  duration_ms?: number | null;
  files?: string[];
  error?: { code: string; detail: string } | null;
  action?: Action | null;
  progress?: { progress: number; total?: number | null; message?: string | null } | null;
  result?: string | null;
}

interface Action {
  action: string;
  by: string;
  expires_at?: string | null;
  question?: { message?: string; form?: any; url?: string | null } | null;
}

/** What an answer consists of: exactly one of these. */
interface Piece {
  text?: string;
  calls?: Call[];
  images?: string[];
  thoughts?: string;
}

/** An event of a stream; `data` has the type that the API's description says. */
interface StreamEvent {
  id?: number;
  type: string;
  data: any;
}

/** A clip of an answer, as it comes. */
interface Clip {
  index: number;
  text: string;
  start_ms: number;
  duration_ms: number;
  mp3: string;
}

interface Recording {
  blob: Blob;
  durationMs: number;
}

/** A file on its way into a message, or stored already. */
interface Attachment {
  key: string;
  name: string;
  part: Signal<FilePart | null>;
  progress: Signal<number>;
  problem: Signal<Error | null>;
  done?: Promise<void>;
  cancel(): void;
}

interface FilePart {
  type: "image" | "file";
  file_id: string;
  name: string;
  width?: number | null;
  height?: number | null;
  text_tokens?: number | null;
}

interface FirstWords {
  text?: string;
  files?: FilePart[];
  recording?: Recording;
  isLive?: boolean; // what is said live follows
}

interface RequestOptions {
  body?: any;
  query?: Record<string, any>;
  key?: string | null;
  stream?: boolean;
  signal?: AbortSignal;
  headers?: Record<string, string>;
}

interface RunTurnOptions {
  path?: string;
  body?: any;
  key?: string;
  turnId?: string;
  signal?: AbortSignal;
  onEvent: (event: StreamEvent) => void;
  onWaiting: (waits: boolean) => void;
  isWatched?: () => boolean;
}

/** One page of a list. */
interface Rows<T> {
  rows: T[];
  next?: string | undefined;
  total: number;
}
