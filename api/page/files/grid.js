// The labelled picture of all images of a job, where one was asked for.

import { Problem, get } from "./api.js";
import { h, put } from "./dom.js";
import { isFinal, pause } from "./live.js";

const AGAIN_MS = 1000;

/** Make the place where it stands; `.show(job)` brings it up to date. */
export function gridPlace(signal) {
  const element = h("section", { class: "grid", "aria-label": "Grid", hidden: true });
  let isAsked = false;
  element.show = (job) => {
    element.hidden = !job.links.grid;
    if (element.hidden) return;
    if (!isFinal(job)) {
      isAsked = false; // begun anew: another one will be made
      put(element, h("p", { class: "faint" }, "When the job has ended, all images stand here side by side."));
    } else if (!isAsked) {
      isAsked = true;
      fetchGrid(job).catch((error) => {
        if (!signal.aborted) put(element, h("p", { class: "problem" }, error.message));
      });
    }
  };

  async function fetchGrid(job) {
    for (;;) {
      try {
        const { url } = await get(`v1/jobs/${job.id}/grid?redirect=false`, signal);
        const picture = h("img", { src: url, alt: "All images of this job side by side, with what they differ in" });
        put(element, h("a", { href: url, target: "_blank", rel: "noopener" }, picture));
        return;
      } catch (error) {
        const isBeingMade = error instanceof Problem && (error.kind === "grid-not-ready" || error.isTransient);
        if (!isBeingMade) throw error;
        await pause(AGAIN_MS, signal);
      }
    }
  }

  return element;
}
