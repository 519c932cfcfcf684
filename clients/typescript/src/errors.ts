// What can go wrong: problem documents as errors, turns that failed, lost connections.
import type { components } from "./schema.js";

export type Problem = components["schemas"]["Problem"];

/** Base of every error of this package. */
export class AgentPlatformError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The server could not be reached for as long as requests are repeated (`retrySeconds`). */
export class ConnectionLost extends AgentPlatformError {}

/** The turn was accepted and failed; its user message is stored. */
export class TurnFailed extends AgentPlatformError {
  constructor(
    readonly turnId: string,
    readonly code: string,
    readonly detail: string,
    /** True if the same message may succeed when it is sent again with the same key. */
    readonly isRetryable: boolean,
  ) {
    super(`${code}: ${detail}`);
  }
}

/** The server refused the request with a problem document (RFC 9457). */
export class ApiError extends AgentPlatformError {
  /** Stable; docs/errors.md of the server lists all of them. */
  readonly code: string;
  readonly detail: string;
  readonly requestId: string | undefined;
  readonly turnId: string | undefined;

  constructor(
    readonly status: number,
    readonly problem: Partial<Problem>,
    readonly retryAfterSeconds: number | undefined,
  ) {
    const code = problem.code ?? "http-error";
    const detail = problem.detail ?? `The server answered ${status}.`;
    super(`${status} ${code}: ${detail}`);
    this.code = code;
    this.detail = detail;
    this.requestId = problem.request_id;
    this.turnId = problem.turn_id ?? undefined;
  }
}

/** 401: the key or token is missing, wrong, expired or revoked. */
export class AuthenticationFailed extends ApiError {}
/** 403: the key lacks a scope. */
export class PermissionDenied extends ApiError {}
/** 404 or 410: there is no such thing for this key. */
export class NotFound extends ApiError {}
/** 409: the session is busy, or the agent archived. */
export class Conflict extends ApiError {}
/** 400, 413, 415, 422: the request is wrong and would be wrong again. */
export class InvalidRequest extends ApiError {}
/** 429: a limit of the key is reached, for longer than requests are repeated. */
export class RateLimited extends ApiError {}
/** 503: the server is full, draining or without its database, for longer than is waited. */
export class ServerUnavailable extends ApiError {}
/** 500, 502, 504: the server or its provider failed. */
export class ServerFailed extends ApiError {}

const CLASSES: Record<number, typeof ApiError> = {
  401: AuthenticationFailed,
  403: PermissionDenied,
  404: NotFound,
  409: Conflict,
  410: NotFound,
  429: RateLimited,
  503: ServerUnavailable,
};

/** Return a problem document; `undefined` for anything else, such as a proxy's page. */
export function parseProblem(body: string): Partial<Problem> | undefined {
  try {
    const problem: unknown = JSON.parse(body);
    return typeof problem === "object" && problem !== null && "code" in problem
      ? (problem as Partial<Problem>)
      : undefined;
  } catch {
    return undefined;
  }
}

/** Return the error of a response of status 400 or more. */
export function apiError(status: number, body: string, retryAfterSeconds: number | undefined): ApiError {
  const kind = CLASSES[status] ?? (status >= 500 ? ServerFailed : InvalidRequest);
  return new kind(status, parseProblem(body) ?? {}, retryAfterSeconds);
}
