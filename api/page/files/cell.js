// One image on the sheet: its frame, what is seen of it, its number, its seed and, where they differ, its prompt.

import { attribute, h, text } from "./dom.js";
import { count } from "./format.js";

const WORDS = { queued: "waits", rendering: "is being rendered", failed: "failed", cancelled: "cancelled" };

/** Make the cell of image `index` of a job; `.show(image, preview, tellsPrompt)` brings it up to date. */
export function makeCell(job, index, total) {
  const picture = h("img", { alt: "", decoding: "async", hidden: true });
  const word = h("span", { class: "word" });
  const step = h("i", { class: "step", hidden: true });
  const frame = h("span", { class: "frame" }, picture, word, step);
  const seed = h("span", { class: "seed" });
  const prompt = h("span", { class: "cell-prompt", "aria-hidden": "true" });
  const link = h("a", { href: `#/jobs/${job}/${index}`, tabIndex: -1 }, frame);
  const cell = h(
    "div",
    { class: "cell", role: "listitem", "data-index": index, "aria-posinset": index + 1, "aria-setsize": total },
    link,
    h("span", { class: "caption", "aria-hidden": "true" }, h("span", {}, count(index)), seed),
    prompt,
  );
  picture.addEventListener("load", () => picture.classList.add("is-there"));
  picture.addEventListener("error", () => attribute(cell, "data-broken", true));
  cell.show = (image, preview, tellsPrompt) => {
    const state = image?.state ?? "unknown";
    attribute(cell, "data-state", state);
    const source = state === "stored" ? image.shown : state === "rendering" ? (preview?.url ?? null) : null;
    picture.hidden = !source;
    if (!source) picture.removeAttribute("src"); // so that the same link is tried again
    if (source && picture.getAttribute("src") !== source) {
      attribute(cell, "data-broken", null);
      picture.src = source;
    }
    const share = state === "rendering" && preview?.steps ? preview.step / preview.steps : null;
    step.hidden = share === null;
    if (share !== null) step.style.setProperty("--share", share);
    text(word, state === "failed" ? "failed" : state === "cancelled" ? "cancelled" : "");
    text(seed, image ? image.seed : "");
    text(prompt, tellsPrompt ? (image?.prompt ?? "") : "");
    attribute(link, "aria-label", image ? `Image ${index}, ${WORDS[state] ?? image.prompt}` : `Image ${index}`);
    attribute(link, "title", image ? (image.error ?? image.prompt) : null);
  };
  return cell;
}
