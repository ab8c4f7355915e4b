// The farm's pulse: throughput, workers and models, asked for once for all who show them; kept for the chart.

import { get } from "./api.js";
import { every } from "./live.js";

const KEPT = "farm.pulse";
const EVERY_MS = 2500;
const KEEP_MS = 20 * 60_000;

/** Tells of "beat" whenever there is news. */
export const pulse = new EventTarget();
export const farm = { throughput: null, workers: null, models: [], samples: restored() };

/** Ask until `signal` is aborted. */
export async function startPulse(signal) {
  await Promise.all([
    every(EVERY_MS, () => beat(signal), signal),
    every(30_000, async () => void (await refreshModels(signal)), signal),
  ]);
}

export async function refreshModels(signal) {
  const before = JSON.stringify(farm.models);
  farm.models = (await get("v1/models", signal)).data;
  if (JSON.stringify(farm.models) !== before) pulse.dispatchEvent(new Event("models"));
  return farm.models;
}

async function beat(signal) {
  const [throughput, workers] = await Promise.all([get("v1/throughput", signal), get("v1/workers", signal)]);
  farm.throughput = throughput;
  farm.workers = workers.data;
  const stored = Object.values(throughput.images_stored).reduce((sum, images) => sum + images, 0);
  const now = Date.now();
  const last = farm.samples.at(-1);
  if (last && stored < last.stored) farm.samples.length = 0; // another farm, or one that began anew
  farm.samples.push({ at: now, stored });
  while (farm.samples[0].at < now - KEEP_MS) farm.samples.shift();
  keep();
  pulse.dispatchEvent(new Event("beat"));
}

/** Images stored in each span of `span_ms`, the newest last; null where nobody looked. */
export function history(spans, span_ms, now = Date.now()) {
  const end = Math.floor(now / span_ms) * span_ms + span_ms;
  const sums = Array.from({ length: spans }, () => null);
  for (let i = 1; i < farm.samples.length; i++) {
    const [from, to] = [farm.samples[i - 1], farm.samples[i]];
    if (to.at - from.at > 4 * span_ms) continue; // the tab slept
    // What came between two looks is spread evenly over the time between them.
    for (let at = from.at; at < to.at; ) {
      const slot = spans - 1 - Math.floor((end - 1 - at) / span_ms);
      const until = Math.min(to.at, (Math.floor(at / span_ms) + 1) * span_ms);
      if (slot >= 0) sums[slot] += ((to.stored - from.stored) * (until - at)) / (to.at - from.at);
      at = until;
    }
  }
  return sums;
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(farm.samples));
  } catch {
    // Full, or closed: the chart starts anew with the next load.
  }
}

function restored() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) ?? [];
  } catch {
    return [];
  }
}
