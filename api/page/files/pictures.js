// What is known of pictures by their keys: what this tab has sent, and what the farm has rendered.

import { Problem, get } from "./api.js";
import { stillGood } from "./peek.js";

const SHELF = "farm.pictures";
const KEPT = 24;

const here = new Map(); // by key: {url, width, height, bytes, name}, its url that of the file itself
const links = restored(); // likewise with signed links, for after a reload

/** Note what a key stands for; `file` is the picture itself. */
export function rememberPicture(key, told, file) {
  if (!here.has(key)) here.set(key, { ...told, url: URL.createObjectURL(file) });
  links.delete(key);
  links.set(key, told);
  for (const oldest of [...links.keys()].slice(0, Math.max(0, links.size - KEPT))) links.delete(oldest);
  try {
    sessionStorage.setItem(SHELF, JSON.stringify([...links]));
  } catch {
    // Not kept: after a reload the key stands there without its picture.
  }
}

/** Return what is known of the picture under a key; null where nobody tells. */
export async function pictureAt(key, signal) {
  if (here.has(key)) return here.get(key);
  const linked = links.get(key);
  if (linked && stillGood(linked.url)) return linked;
  const [, job, index] = /^jobs\/(job_\w+)\/0*(\d+)\.\w+$/.exec(key) ?? [];
  if (!job && !key.startsWith("uploads/")) return null;
  const path = job ? `jobs/${job}/images/${index}` : `uploads?key=${encodeURIComponent(key)}`;
  try {
    const { url } = await get(`v1/${path}`, signal);
    return url && measured({ url, name: job ? `image ${index} of ${job}` : "a picture sent before" });
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    return null; // expired, or another tenant's: the farm says so when the form is sent
  }
}

async function measured(told) {
  const picture = new Image();
  picture.src = told.url;
  try {
    await picture.decode();
  } catch {
    return { ...told, url: null };
  }
  return { ...told, width: picture.naturalWidth, height: picture.naturalHeight };
}

function restored() {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(SHELF)));
  } catch {
    return new Map();
  }
}
