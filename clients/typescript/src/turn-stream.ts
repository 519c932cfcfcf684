// The events of one turn, over lost connections and restarts of the server.
import { ApiError, ConnectionLost, TurnFailed } from "./errors.js";
import type { components, TurnEvent } from "./schema.js";
import { type Call, Retries, type Transport } from "./transport.js";

type Turn = components["schemas"]["TurnWithMessage"];
export type Reply = components["schemas"]["ReplyRead"];

const TERMINAL = new Set<string>(["turn.completed", "turn.failed", "turn.cancelled"]);
export const UNSETTLED = new Set<string>(["queued", "in_progress"]);
export const EVENTS = { Accept: "text/event-stream" };

/** Reads server-sent events from pieces of bytes; an event that is cut off is dropped. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #fields: Record<string, string> = {};

  /** Return the events that are complete now; those of the connection have number 0. */
  feed(piece: Uint8Array): TurnEvent[] {
    const events: TurnEvent[] = [];
    const lines = (this.#rest + this.#decoder.decode(piece, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const each of lines) {
      const line = each.endsWith("\r") ? each.slice(0, -1) : each;
      if (line) {
        const colon = line.indexOf(":");
        const name = colon < 0 ? line : line.slice(0, colon);
        this.#fields[name] = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        continue;
      }
      const { id, event, data } = this.#fields;
      this.#fields = {};
      if (data === undefined) continue;
      events.push({ number: Number(id ?? 0), type: event ?? "message", data: JSON.parse(data) } as TurnEvent);
    }
    return events;
  }
}

/**
 * The events of a turn, each once and in order. Iterate over it once: it ends with the turn, and
 * throws `TurnFailed` after `turn.failed`. Leaving the loop closes the connection; the turn goes on.
 */
export class TurnStream implements AsyncIterable<TurnEvent> {
  sessionId: string | undefined;
  /** The answer so far; empty again where the turn begins anew. */
  text = "";
  /** The transcript of the recording, once it is there. */
  transcript: string | undefined;
  /** The last event, once the turn has ended. */
  outcome: TurnEvent | undefined;
  #clips: string[] = [];

  constructor(
    private readonly transport: Transport,
    private readonly first: Call,
    private readonly signal: AbortSignal | undefined,
    /** The turn's id, once it is accepted. */
    public turnId?: string,
    /** The number of the last event: `followTurn` goes on after it, in another process. */
    public lastNumber = 0,
  ) {}

  /** The sound so far. */
  get mp3(): Uint8Array {
    return Uint8Array.from(this.#clips.flatMap((clip) => Array.from(atob(clip), (c) => c.charCodeAt(0))));
  }

  /** Read to the end and return the answer; of a cancelled turn what was said. */
  async finalReply(): Promise<Reply> {
    for await (const _ of this);
    const data = this.outcome?.data as Partial<components["schemas"]["TurnCompletedEventData"]>;
    const { message, output = null, usage = {}, timings = {} } = data;
    return { parts: null, output, ...message, usage, timings } as Reply;
  }

  /** Cancel the turn, if it is accepted already; the stream then ends by itself. */
  async cancel(playedMs?: number): Promise<Turn | undefined> {
    if (!this.turnId) return undefined;
    const json = playedMs === undefined ? {} : { played_ms: playedMs };
    return (await this.transport.send({ method: "POST", path: `/turns/${this.turnId}/cancel`, json })).json();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<TurnEvent, void> {
    const retries = new Retries(this.transport.retrySeconds);
    while (!this.outcome) {
      const call = this.#nextCall();
      let reason: unknown = new ConnectionLost("the stream ended early");
      try {
        for await (const event of this.#eventsOf(call, retries)) {
          retries.noteProgress();
          yield event;
        }
      } catch (error) {
        if (error instanceof ApiError && error.code === "events-pruned") yield await this.#readOutcome(error);
        else if (error instanceof ApiError || this.signal?.aborted) throw error;
        reason = error;
      }
      if (!this.outcome) await retries.afterLoss(call, reason);
    }
    const last: TurnEvent = this.outcome;
    if (last.type === "turn.failed") {
      const { error, retryable } = last.data;
      throw new TurnFailed(this.turnId ?? "", error.code, error.detail, retryable);
    }
  }

  #nextCall(): Call {
    if (!this.turnId) return this.first; // the same key: the same turn
    const path = `/turns/${this.turnId}/events`;
    return { method: "GET", path, query: { after: this.lastNumber }, headers: EVENTS };
  }

  async *#eventsOf(call: Call, retries: Retries): AsyncGenerator<TurnEvent, void> {
    const connection = await this.transport.open(call, retries, this.signal);
    if (connection.response.status === 204) {
      yield await this.#readOutcome(new ConnectionLost("the turn's end is missing"));
      return;
    }
    const parser = new EventParser();
    for await (const piece of connection.pieces()) {
      for (const event of parser.feed(piece)) if (this.#take(event)) yield event;
      if (this.outcome) return;
    }
  }

  /** Take an event in; return false for one of the connection, or that was seen before. */
  #take(event: TurnEvent): boolean {
    if (event.type === "turn.created") {
      this.turnId = event.data.turn_id;
      this.sessionId = event.data.session_id;
    }
    if (event.number <= this.lastNumber) return false;
    this.lastNumber = event.number;
    if (event.type === "turn.in_progress") {
      this.text = "";
      this.#clips = [];
    } else if (event.type === "output_text.delta") this.text += event.data.delta;
    else if (event.type === "input_transcript.done") this.transcript = event.data.text;
    else if (event.type === "audio.clip") this.#clips.push(event.data.mp3);
    else if (TERMINAL.has(event.type)) this.outcome = event;
    return true;
  }

  /** Return how a turn ended whose events are gone. Throws `otherwise` where it runs. */
  async #readOutcome(otherwise: Error): Promise<TurnEvent> {
    const response = await this.transport.send({ method: "GET", path: `/turns/${this.turnId}` }, this.signal);
    const turn: Turn = await response.json();
    if (UNSETTLED.has(turn.status)) throw otherwise;
    this.text = turn.message.content;
    const { message, usage, timings } = turn;
    const error = { title: "", code: "internal-error", detail: "The turn failed.", ...turn.error };
    const data = turn.status === "failed" ? { error, retryable: false } : { message, usage, timings };
    this.outcome = { number: this.lastNumber + 1, type: `turn.${turn.status}`, data } as TurnEvent;
    return this.outcome;
  }
}
