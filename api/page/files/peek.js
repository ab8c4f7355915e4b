// What a job looks like before it is opened: its first prompt, its first pictures. Asked for once, a few at a time.

import { get } from "./api.js";

const NUM_COVERS = 4;
const AT_ONCE = 4;
const AGAIN_MS = 2000;
const SMALL_PX = 512 * 512;

const known = new Map(); // by job id: {prompt, covers, stored, at, isWhole}
const waiting = [];
let running = 0;

/** Return what is known of a job's first images; asks in the background and calls `then` when there is more. */
export function peek(job, then) {
  const seen = known.get(job.id) ?? { prompt: null, covers: [], stored: -1, at: 0, isWhole: false };
  known.set(job.id, seen);
  const hasNews = seen.prompt === null || (!seen.isWhole && job.counts.stored > seen.stored);
  if (hasNews && Date.now() - seen.at > AGAIN_MS) {
    seen.at = Date.now();
    waiting.push(() => look(job, seen).then(then));
    next();
  }
  return seen;
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting
      .shift()()
      .catch(() => {}) // the banner tells of an API that is away; a job that has expired has no covers
      .finally(() => {
        running -= 1;
        next();
      });
  }
}

async function look(job, seen) {
  const page = await get(`v1/jobs/${job.id}/images?limit=${NUM_COVERS}`);
  seen.prompt = page.data[0].prompt;
  seen.stored = job.counts.stored;
  seen.covers = page.data
    .filter((image) => image.state === "stored")
    .map((image) => ({
      index: image.index,
      // The same file under the link it had: another signature would be another download.
      url: stillGood(seen.covers.find((cover) => cover.index === image.index)?.url) ?? smallest(image),
    }));
  seen.isWhole = page.data.every((image) => image.state !== "queued" && image.state !== "rendering");
}

/** The least of an image's files that shows it. */
export function smallest(image) {
  return image.thumbnail_url ?? image.url;
}

/** A signed link, if it works for another minute; else null. */
export function stillGood(url) {
  if (!url) return null;
  const query = new URL(url).searchParams;
  const [signed, lasts] = [query.get("X-Amz-Date"), Number(query.get("X-Amz-Expires"))];
  if (!signed) return url;
  const [, year, month, day, hour, minute, second] = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(signed);
  const until = Date.UTC(year, month - 1, day, hour, minute, second) + lasts * 1000;
  return until > Date.now() + 60_000 ? url : null;
}

/** Whether a picture that has loaded is small enough to load its like in numbers. */
export function isSmall(picture) {
  return picture.naturalWidth * picture.naturalHeight <= SMALL_PX;
}
