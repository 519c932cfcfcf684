/** Types for `tsc --checkJs`; no browser loads this file. */

declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

/** A turn's stages in milliseconds from its acceptance, as the server reports them. */
interface Timings {
  queue_ms?: number;
  stt_ms?: number;
  first_token_ms?: number;
  first_sentence_ms?: number;
  first_audio_ms?: number;
  total_ms?: number;
}

interface TurnLike {
  timings?: Timings;
  created_at?: string;
  started_at?: string;
  modality?: string;
}

interface RequestOptions {
  body?: any;
  query?: Record<string, any>;
  key?: string;
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
  onEvent: (event: { id?: number; type: string; data: any }) => void;
  onWaiting: (waits: boolean) => void;
  isWatched?: () => boolean;
}
