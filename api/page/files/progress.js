// A job's progress as a bar, as words and as a mark; the same wherever it is shown.

import { attribute, h, text, vars } from "./dom.js";
import { between, count, counted, duration, percent, rate } from "./format.js";
import { isFinal } from "./live.js";

const PARTS = ["stored", "rendering", "failed", "cancelled"];

/** Make a bar; `.show(job)` brings it up to date. */
export function progressBar(label) {
  const parts = PARTS.map((name) => h("span", { class: `part part-${name}` }));
  const bar = h(
    "div",
    { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-label": label },
    parts,
  );
  bar.show = (job) => {
    PARTS.forEach((name, i) => vars(parts[i], { share: job.counts[name] / job.total }));
    attribute(bar, "aria-valuenow", percent(settled(job), job.total));
    attribute(bar, "aria-valuetext", inWords(job));
    attribute(bar, "data-state", job.state);
  };
  return bar;
}

const settled = ({ counts }) => counts.stored + counts.failed + counts.cancelled;

/** "12 of 48 images, 1 failed" */
export function inWords({ counts, total }) {
  const failed = counts.failed ? `, ${count(counts.failed)} failed` : "";
  const cancelled = counts.cancelled ? `, ${count(counts.cancelled)} cancelled` : "";
  return `${count(counts.stored)} of ${counted(total, "image")}${failed}${cancelled}`;
}

/** What a job's state means to who waits for it. */
export function outlook(job) {
  if (job.state === "paused" || job.state === "cancelled") return "";
  if (job.state === "queued") return job.eta_s ? `about ${duration(job.eta_s)}` : "waits for a worker";
  if (!isFinal(job) && job.eta_s === null) return "time unknown as yet";
  if (!isFinal(job)) return job.eta_s < 1 ? "a moment left" : `${duration(job.eta_s)} left`;
  return job.started_at && job.finished_at ? `in ${duration(between(job.started_at, job.finished_at))}` : "";
}

/** The pace of a job so far, or nothing. */
export function pace(job) {
  if (job.images_per_s === null) return "";
  const { value, unit } = rate(job.images_per_s);
  return `${value} ${unit}`;
}

/** Make a mark of a job's state: a dot and a word; `.show(job)` brings it up to date. */
export function stateMark() {
  const word = h("span");
  const mark = h("span", { class: "mark" }, h("i", { class: "dot", "aria-hidden": "true" }), word);
  mark.show = (job) => {
    attribute(mark, "data-state", job.paused && job.state === "rendering" ? "paused" : job.state);
    text(word, job.paused && job.state === "rendering" ? "pausing" : job.state);
  };
  return mark;
}
