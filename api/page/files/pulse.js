// The farm's pulse: throughput, workers and models, asked for once for all who show them; kept for the chart.

import { get } from "./api.js";
import { every } from "./live.js";

const KEPT = "farm.pulse";
const EVERY_MS = 2500;
const KEEP_MS = 20 * 60_000;

/** Tells of "beat" whenever there is news. */
export const pulse = new EventTarget();
export const farm = { throughput: null, workers: null, models: [], ...restored() };

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
  if (last && stored < last.stored) farm.samples = []; // another farm, or one that began anew
  if (!farm.samples.length) farm.before = means(throughput.total, now);
  farm.samples.push({ at: now, stored });
  while (farm.samples[0].at < now - KEEP_MS) farm.samples.shift();
  keep();
  pulse.dispatchEvent(new Event("beat"));
}

/** What is known of the time before the page looked: means, by how long ago a moment was. */
function means(total, at) {
  const [minute, five, hour] = ["1m", "5m", "1h"].map((name) => total[name].images);
  return { at, spans: [[60, minute / 60], [300, (five - minute) / 240], [3600, (hour - five) / 3300]] };
}

/**
 * Images per second in each of `spans` spans of time, the newest last: `{value, isMean}`, where means are of the time
 * before anybody looked; value null where nothing is known.
 */
export function history(spans, span_s, now = Date.now()) {
  const span_ms = span_s * 1000;
  const end = Math.ceil(now / span_ms) * span_ms;
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
  return sums.map((sum, i) => {
    const start = end - (spans - i) * span_ms;
    if (sum !== null) return { value: sum / Math.min(span_s, elapsed_s(start, now)), isMean: false };
    const age_s = ((farm.before?.at ?? 0) - start) / 1000 - span_s / 2;
    const mean = age_s >= 0 ? farm.before?.spans.find(([limit]) => age_s <= limit) : null;
    return { value: mean ? mean[1] : null, isMean: true };
  });
}

/** How much of a span that began at `start` is over; never so little that a chance looks like a rate. */
function elapsed_s(start, now) {
  return Math.max(5, (now - start) / 1000);
}

/** Models as somebody would choose them: loaded ones, served ones; where there is no GPU, those that need none. */
export function mostLikelyFirst(models) {
  const isSlow = farm.workers?.length && farm.workers.every((worker) => !worker.gpu);
  const pixels = (model) => (isSlow ? model.width * model.height : 0);
  return [...models].sort(
    (a, b) => b.num_workers_resident - a.num_workers_resident || b.available - a.available || pixels(a) - pixels(b),
  );
}

function keep() {
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ samples: farm.samples, before: farm.before }));
  } catch {
    // Full, or closed: the chart starts anew with the next load.
  }
}

function restored() {
  const fresh = { samples: [], before: null };
  try {
    return { ...fresh, ...JSON.parse(sessionStorage.getItem(KEPT)) };
  } catch {
    return fresh;
  }
}
