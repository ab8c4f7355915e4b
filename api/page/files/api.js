// The farm's API as the page uses it: requests with the key, problem documents as errors, events as a stream.

const BASE = new URL(".", document.baseURI); // a gateway may serve the farm below a path
const PATIENCE_MS = 20_000;
const SILENCE_MS = 45_000; // the API sends a comment every few seconds when there is nothing to tell
const KEY = "farm.key";

/** Tells of "away" (with the problem), "back" and "locked" (a key is asked for). */
export const reach = new EventTarget();
let isAway = false;

/** An answer that is no success, or none at all (`status` 0). `kind` is the end of the problem's type. */
export class Problem extends Error {
  constructor(status, document = {}) {
    super(document.detail ?? document.title ?? `the API answered ${status}`);
    this.status = status;
    this.kind = String(document.type ?? "").split(":").pop();
    this.title = document.title ?? "";
    this.errors = document.errors ?? [];
    this.document = document;
  }

  /** Whether waiting may mend it: nobody answers, something behind it is away, or the key has to slow down. */
  get isTransient() {
    return this.status === 0 || this.status >= 500 || this.kind === "too-many-requests";
  }
}

// -- the key, if the farm wants one

const shelves = () => [sessionStorage, localStorage];

export function key() {
  return fromStorage((shelf) => shelf.getItem(KEY));
}

/** Keep a key for this tab, or for this browser. */
export function keepKey(secret, { forLong }) {
  forgetKey();
  fromStorage(() => (forLong ? localStorage : sessionStorage).setItem(KEY, secret));
}

export function forgetKey() {
  fromStorage((shelf) => shelf.removeItem(KEY));
}

function fromStorage(use) {
  let found = null;
  for (const shelf of shelves()) {
    try {
      found ||= use(shelf);
    } catch {
      // Storage is closed to this page: the key lives as long as a request. The sign-in says so.
    }
  }
  return found;
}

// -- requests

/** Return an answer's document; throws Problem, and AbortError when `signal` says so. */
export async function ask(method, path, { body, signal, headers = {} } = {}) {
  const limit = AbortSignal.timeout(PATIENCE_MS);
  const sent = await send(method, path, {
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
    body: body === undefined ? undefined : JSON.stringify(body),
    headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
  });
  return sent.status === 204 ? null : sent.json();
}

export const get = (path, signal) => ask("GET", path, { signal });

/** Return the raw answer of a request that went well. */
export async function send(method, path, { signal, body, headers = {} } = {}) {
  const secret = key();
  const all = secret ? { ...headers, Authorization: `Bearer ${secret}` } : headers;
  let answer;
  try {
    const how = { method, body, signal, headers: all, cache: "no-store", redirect: "error" };
    answer = await fetch(new URL(path, BASE), how);
  } catch (error) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw error;
    throw tell(new Problem(0, { title: "The API does not answer", detail: "it is stopped, or the network is" }));
  }
  if (answer.ok) {
    if (isAway) {
      isAway = false;
      reach.dispatchEvent(new Event("back"));
    }
    return answer;
  }
  const document = await answer.json().catch(() => ({}));
  throw tell(new Problem(answer.status, document));
}

function tell(problem) {
  if (problem.isTransient) {
    isAway = true;
    reach.dispatchEvent(new CustomEvent("away", { detail: problem }));
  } else if (problem.status === 401) {
    reach.dispatchEvent(new CustomEvent("locked", { detail: problem }));
  }
  return problem;
}

/**
 * Yield `{event, data, id}` of a stream of server-sent events until it ends, from behind `lastId` on; throws Problem
 * where there is none. Fetched, because EventSource sends no key.
 */
export async function* events(path, signal, lastId = null) {
  const gone = new AbortController();
  const answer = await send("GET", path, {
    signal: AbortSignal.any([signal, gone.signal]),
    headers: { Accept: "text/event-stream", ...(lastId !== null && { "Last-Event-ID": lastId }) },
  });
  if (!answer.headers.get("Content-Type")?.startsWith("text/event-stream")) throw new Problem(406);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let silence = null;
  let rest = "";
  try {
    for (;;) {
      silence = setTimeout(() => gone.abort(), SILENCE_MS);
      const { value, done } = await reader.read();
      clearTimeout(silence);
      if (done) return;
      const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = blocks.pop();
      yield* blocks.map(parse).filter((event) => event.data !== null);
    }
  } finally {
    clearTimeout(silence);
    gone.abort();
  }
}

function parse(block) {
  const event = { event: "message", data: null, id: null };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") event.data = event.data === null ? value : `${event.data}\n${value}`;
    else if (name === "event" || name === "id") event[name] = value;
  }
  if (event.data !== null) event.data = JSON.parse(event.data);
  return event;
}
