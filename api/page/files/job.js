// One job: how far it is, what can be done with it, and its images as they come.

import { Problem, ask, get, key, send } from "./api.js";
import { attribute, button, h, icon, put, say, text } from "./dom.js";
import { NONE, count, counted, duration, exactly, number, percent } from "./format.js";
import { Gallery } from "./gallery.js";
import { gridPlace } from "./grid.js";
import { imageDialog } from "./image.js";
import { follow, isFinal } from "./live.js";
import { inWords, outlook, pace, progressBar, stateMark } from "./progress.js";

const STEPS_A_PREVIEW = 4;
const MOST_PACKED = 50_000; // images of one archive

/** Show job `id` in `root`; `.open(index)` shows one of its images over it, `.open(null)` none. */
export function jobView(root, { id, title, signal }) {
  let job = null;
  let gallery = null;
  let wanted = null; // the image to be shown, before the job is known
  const dialog = imageDialog(signal);
  const grid = gridPlace(signal);

  const head = h("div", { class: "job-head" });
  const body = h("div");
  put(root, h("article", { class: "job", "aria-label": "Job" }, head, grid, body));
  const shown = makeHead({ act });
  put(head, h("p", { class: "faint" }, "…"));

  let isFollowed = false;
  keepUp();
  get(`v1/jobs/${id}/images?limit=1`, signal).then(
    ({ data }) => shown.prompt(data[0].prompt),
    () => {}, // told by `missing`
  );

  /** Follow the job until it ends; a retry of its failed images begins it anew. */
  function keepUp() {
    if (isFollowed) return;
    isFollowed = true;
    const look = async () => {
      show(await get(`v1/jobs/${id}`, signal));
      gallery.lookAgain();
    };
    const hear = {
      job: show,
      image: (image) => gallery.take(image),
      preview: (preview) => {
        gallery.preview(preview);
        dialog.preview(preview);
      },
    };
    const path = `v1/jobs/${id}/events?previews=${STEPS_A_PREVIEW}`;
    follow({ path, look, hear, ms: 1500, isOver: () => isFinal(job) }, signal)
      .catch(missing)
      .finally(() => {
        isFollowed = false;
      });
  }

  function show(fresh) {
    const before = job;
    job = fresh;
    if (!gallery) {
      gallery = new Gallery(job, signal);
      put(head, shown.element);
      put(body, gallery.element);
      if (wanted !== null) open(wanted);
    }
    shown.show(job);
    gallery.update(job);
    grid.show(job);
    dialog.update(job);
    if (before && isFinal(job) && !isFinal(before)) {
      say(`The job is ${job.state}: ${inWords(job)}.`);
      gallery.lookAgain();
    }
    const share = percent(job.counts.stored, job.total);
    title(isFinal(job) ? `${job.state === "done" ? "✓" : "✗"} ${shown.name()}` : `${share} % ${shown.name()}`);
  }

  async function act(verb) {
    const [method, path] = verb === "cancel" ? ["DELETE", ""] : ["POST", `/${verb}`];
    try {
      show(await ask(method, `v1/jobs/${id}${path}`, { signal }));
      say(`${verb}: the job is ${job.state} now.`);
      gallery.lookAgain();
      if (!isFinal(job)) keepUp();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      shown.tell(error.message);
    }
  }

  function missing(error) {
    if (signal.aborted) return;
    if (!(error instanceof Problem)) throw error;
    const manifest = error.document.manifest;
    put(
      root,
      h(
        "div",
        { class: "empty" },
        h("p", { class: "lead" }, error.kind === "job-expired" ? "This job has expired." : "There is no such job."),
        h("p", {}, error.message),
        manifest && h("p", {}, "What is left of it: ", h("code", {}, manifest)),
        h("p", {}, h("a", { class: "button", href: "#/" }, "All jobs")),
      ),
    );
  }

  function open(index) {
    wanted = index;
    if (!job) return;
    if (index === null) {
      const last = dialog.close();
      if (last !== null) gallery.goTo(last);
    } else if (index >= 0 && index < job.total) {
      dialog.open(job, index, gallery);
    }
  }

  return { open };
}

function makeHead({ act }) {
  const name = h("h1", { class: "prompt" });
  const more = h("p", { class: "meta" });
  const mark = stateMark();
  const bar = progressBar("Progress of this job");
  const words = h("span");
  const ahead = h("span", { class: "ahead" });
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const facts = h("dl", { class: "numbers" });
  const actions = h("div", { class: "actions needs-submit" });
  const asked = confirmed(() => act("cancel"));
  const all = h("a", { class: "button" }, icon("save"), h("span", {}, "Download all"));
  all.addEventListener("click", (event) => saveWithKey(event, all));
  const buttons = {
    pause: button("Pause", { name: "pause", press: () => act("pause") }),
    resume: button("Resume", { name: "play", kind: "primary", press: () => act("resume") }),
    retry: button("Retry failed", { name: "retry", kind: "primary", press: () => act("retry") }),
    cancel: asked.button,
  };
  put(actions, Object.values(buttons));
  const element = h(
    "div",
    {},
    h("p", { class: "crumb" }, h("a", { href: "#/" }, "Jobs"), " / ", mark),
    h("div", { class: "job-title" }, h("div", {}, name, more), h("div", { class: "actions" }, all, actions)),
    h("div", { class: "job-bar" }, bar, h("p", { class: "line" }, words, ahead)),
    problem,
    facts,
  );
  return {
    element,
    name: () => name.textContent,
    prompt: (prompt) => text(name, prompt),
    tell(sentence) {
      text(problem, sentence);
      problem.hidden = false;
    },
    show(job) {
      if (!name.textContent) text(name, job.id);
      const prompts = job.num_prompts > 1 ? `and ${counted(job.num_prompts - 1, "more prompt")}` : null;
      const labels = Object.entries(job.labels).map(([label, value]) => `${label}: ${value}`);
      text(more, [prompts, job.model, job.id, ...labels].filter(Boolean).join(" · "));
      mark.show(job);
      bar.show(job);
      text(words, `${inWords(job)} · ${percent(job.counts.stored, job.total)} %`);
      text(ahead, outlook(job));
      const ended = isFinal(job);
      attribute(all, "href", `v1/jobs/${job.id}/archive`);
      all.hidden = !job.counts.stored || job.total > MOST_PACKED;
      buttons.pause.hidden = ended || job.paused;
      buttons.resume.hidden = ended || !job.paused;
      buttons.retry.hidden = !job.counts.failed || job.state === "cancelled";
      if (ended) asked.reset();
      buttons.cancel.hidden = ended;
      put(facts, factsOf(job).map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value))));
    },
  };
}

/** Links carry no key: with one, the archive is fetched first and saved then. */
async function saveWithKey(event, link) {
  if (!key()) return;
  event.preventDefault();
  if (link.getAttribute("aria-disabled")) return;
  attribute(link, "aria-disabled", "true");
  say("Fetching the images.");
  try {
    const archive = await send("GET", link.getAttribute("href"));
    const url = URL.createObjectURL(await archive.blob());
    h("a", { href: url, download: `${link.getAttribute("href").split("/")[2]}.zip` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } finally {
    attribute(link, "aria-disabled", null);
  }
}

function factsOf(job) {
  const output = [job.output.format, job.output.upscale && `${job.output.upscale}×`, job.reproducibility];
  return [
    ["pace", pace(job) || NONE],
    ["GPU s an image", number(job.gpu_s_per_image)],
    ["GPU time", duration(job.gpu_s)],
    job.price === null ? null : ["price", number(job.price)],
    job.price_per_1000_images === null ? null : ["price of 1,000", number(job.price_per_1000_images)],
    job.retries ? ["hand-outs repeated", count(job.retries)] : null,
    job.reused ? ["taken from store", count(job.reused)] : null,
    ["priority", job.priority],
    ["files", output.filter(Boolean).join(", ")],
    ["sent", exactly(job.created_at)],
    ...(job.finished_at ? [["ended", exactly(job.finished_at)]] : []),
  ].filter(Boolean);
}

/** A button that asks once more before it does what cannot be undone. */
function confirmed(act) {
  let timer = null;
  const reset = () => {
    clearTimeout(timer);
    timer = null;
    text(node.querySelector("span"), "Cancel");
    node.classList.remove("is-armed");
  };
  const node = button("Cancel", {
    name: "stop",
    press: () => {
      if (timer) {
        reset();
        act();
        return;
      }
      text(node.querySelector("span"), "Cancel what is left?");
      node.classList.add("is-armed");
      timer = setTimeout(reset, 4000);
    },
  });
  return { button: node, reset };
}
