// What keeps a view fresh: events where the API streams them, questions in a steady rhythm where it does not.

import { Problem, events, reach } from "./api.js";

const STREAM_AGAIN_MS = 10_000;
const HIDDEN_MS = 20_000;
const HIDDEN_FACTOR = 6; // a tab that nobody looks at asks this much less often
const END = new Set(["done", "failed", "cancelled"]);

/** Whether nothing will change any more. */
export const isFinal = (job) => END.has(job.state);

/** Wait; rejects when `signal` is aborted, ends early when the tab comes to the front or the API is back. */
export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const settle = (how) => (outcome) => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", early);
      reach.removeEventListener("back", end);
      signal.removeEventListener("abort", stop);
      how(outcome);
    };
    const end = settle(resolve);
    const stop = settle(() => reject(signal.reason));
    const early = () => document.hidden || end();
    const timer = setTimeout(end, document.hidden ? ms * HIDDEN_FACTOR : ms);
    document.addEventListener("visibilitychange", early);
    reach.addEventListener("back", end);
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
}

/** Run `task` now and again `ms` after each time it has ended, until `signal` is aborted or it returns false. */
export async function every(ms, task, signal) {
  try {
    while ((await attempt(task)) !== false) await pause(ms, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

/** Run a task; what waiting mends is told by the banner, and another round comes. */
async function attempt(task) {
  try {
    return await task();
  } catch (error) {
    if (error instanceof Problem && error.isTransient) return true;
    throw error;
  }
}

/**
 * Keep up with something: `look()` asks how it stands, `hear[event](data)` takes what the stream at `path` tells, and
 * where there is no stream `look` is called every `ms`. Ends when `isOver()` after either, throws what `look` throws.
 */
export async function follow({ path, look, hear, ms, isOver = () => false }, signal) {
  let lastId = null;
  while (!signal.aborted) {
    await persist(look, signal);
    if (isOver()) return;
    const heard = await listen(path, hear, lastId, signal);
    lastId = heard.lastId;
    const until = Date.now() + (heard.any ? 0 : STREAM_AGAIN_MS);
    do {
      if (isOver()) return;
      await pause(ms, signal);
      await persist(look, signal);
    } while (Date.now() < until || document.hidden);
    if (isOver()) return;
  }
}

/** Hear a stream until it ends; returns whether there was `any`, and the id of the last event that had one. */
async function listen(path, hear, lastId, signal) {
  const heard = { any: false, lastId };
  const away = leaveWhenHidden();
  const both = AbortSignal.any([signal, away.signal]);
  try {
    for await (const { event, data, id } of events(path, both, lastId)) {
      heard.any = true;
      heard.lastId = id ?? heard.lastId;
      hear[event]?.(data);
    }
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof Problem && error.status === 401) throw error;
    // Broken, or nobody looks, or an API without streams: whoever called asks instead.
  } finally {
    away.stop();
  }
  return heard;
}

/** A browser has six connections to a host: a tab that nobody looks at must not hold one. */
function leaveWhenHidden() {
  const end = new AbortController();
  let timer = null;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => end.abort(), HIDDEN_MS);
  };
  document.addEventListener("visibilitychange", look);
  look();
  return {
    signal: end.signal,
    stop() {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
    },
  };
}

async function persist(question, signal) {
  for (;;) {
    try {
      return await question();
    } catch (error) {
      if (!(error instanceof Problem) || !error.isTransient) throw error;
      await pause(2000, signal);
    }
  }
}
