// What keeps a view fresh: events where the API streams them, questions in a steady rhythm where it does not.

import { Problem, events, get, reach } from "./api.js";

const STREAM_AGAIN_MS = 10_000;
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
 * Follow a job until it ends: `on.job(job)` with each change, `on.image({index, state})` and `on.preview(preview)`
 * while the stream lasts, `on.polled()` after each question without one. Throws Problem when there is no such job.
 */
export async function followJob(id, on, signal) {
  let job = null;
  const told = (fresh) => {
    job = fresh;
    on.job(fresh);
  };
  const hear = {
    job: told,
    image: (image) => on.image(image),
    preview: (preview) => on.preview(preview),
  };
  while (!signal.aborted) {
    told(await persist(() => get(`v1/jobs/${id}`, signal), signal));
    if (isFinal(job)) return;
    const isStreamed = await listen(`v1/jobs/${id}/events?previews=true`, hear, signal);
    if (signal.aborted || isFinal(job)) return;
    const until = Date.now() + (isStreamed ? 0 : STREAM_AGAIN_MS);
    while (Date.now() < until && !isFinal(job)) {
      on.polled();
      await pause(1500, signal);
      told(await persist(() => get(`v1/jobs/${id}`, signal), signal));
    }
  }
}

/** Tell `hear[event](data)` of each event until the stream ends; whether there was one. */
export async function listen(path, hear, signal) {
  let isStreamed = false;
  try {
    for await (const { event, data } of events(path, signal)) {
      isStreamed = true;
      hear[event]?.(data);
    }
  } catch (error) {
    if (signal.aborted) throw error;
    // Broken, or an API without streams: whoever called asks instead.
  }
  return isStreamed;
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
