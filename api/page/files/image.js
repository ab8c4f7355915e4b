// One image over its job: the picture, its recipe, and the way to the next.

import { Problem, ask, get } from "./api.js";
import { attribute, button, h, put, say, text } from "./dom.js";
import { count, duration, exactly, number } from "./format.js";
import { every } from "./live.js";
import { smallest, stillGood } from "./peek.js";
import { fillForm } from "./draft.js";

const SETTLED = new Set(["stored", "failed", "cancelled"]);

const MOST_ENLARGED = 4;

/** Make the dialog; it is open while the address names an image, and closing it goes back to the job. */
export function imageDialog(signal) {
  let job = null;
  let index = null;
  let gallery = null;
  let shown = null; // the image as the API told it
  let asked = new AbortController();

  const picture = h("img", { class: "full", alt: "" });
  const word = h("p", { class: "stage-word" });
  const stage = h("div", { class: "stage" }, picture, word);
  const counter = h("span", { class: "counter" });
  const panel = h("div", { class: "recipe" });
  const link = (name, shortcut, mark) =>
    h("a", { class: "button quiet", "aria-label": name, "aria-keyshortcuts": shortcut }, mark);
  const previous = link("Previous image", "ArrowLeft", "‹");
  const next = link("Next image", "ArrowRight", "›");
  const close = link("Close: back to the job", "Escape", "Close");
  const dialog = h(
    "dialog",
    { class: "image", "aria-label": "Image", tabIndex: -1, on: { keydown: onKey, cancel: onCancel } },
    h("div", { class: "image-bar" }, previous, counter, next, h("span", { class: "gap" }), close),
    stage,
    panel,
  );
  picture.addEventListener("click", () => stage.classList.toggle("is-large"));
  picture.addEventListener("load", () => {
    // Enlarged four times a picture is still one; beyond that it is a blur.
    picture.style.maxWidth = `${picture.naturalWidth * MOST_ENLARGED}px`;
    picture.style.maxHeight = `${picture.naturalHeight * MOST_ENLARGED}px`;
  });
  picture.addEventListener("error", () => {
    if (shown?.url) text(word, `The picture lies at ${new URL(shown.url).origin}, which this browser cannot reach.`);
  });

  function open(ofJob, at, ofGallery) {
    [job, gallery] = [ofJob, ofGallery];
    if (!dialog.isConnected) document.body.append(dialog);
    if (!dialog.open) {
      dialog.showModal();
      dialog.focus();
    }
    if (at === index) return;
    index = at;
    shown = null;
    stage.classList.remove("is-large");
    lead(previous, index > 0 ? index - 1 : null);
    lead(next, index < job.total - 1 ? index + 1 : null);
    close.setAttribute("href", `#/jobs/${job.id}`);
    text(counter, `image ${count(index)} of ${count(job.total)}`);
    draw(gallery.known(index) ?? null);
    asked.abort();
    asked = new AbortController();
    const both = AbortSignal.any([signal, asked.signal]);
    every(1200, () => load(both), both);
  }

  async function load(both) {
    const at = index;
    let image;
    try {
      image = await get(`v1/jobs/${job.id}/images/${at}`, both);
    } catch (error) {
      if (!(error instanceof Problem) || error.isTransient) throw error;
      text(word, error.message);
      return false;
    }
    if (at === index) draw(image);
    if (SETTLED.has(image.state)) prefetch();
    return !SETTLED.has(image.state);
  }

  function draw(image) {
    const before = shown;
    shown = image;
    const isStored = image?.state === "stored";
    const url = isStored ? (stillGood(before?.index === image.index ? before.url : null) ?? image.url) : null;
    if (isStored) image.url = url;
    if (url) {
      if (picture.getAttribute("src") !== url) picture.src = url;
    } else if (!image || before?.index !== image.index) {
      picture.removeAttribute("src");
    }
    attribute(picture, "alt", image ? image.prompt : "");
    picture.hidden = !picture.hasAttribute("src");
    text(word, image ? wordFor(image) : "");
    attribute(stage, "data-state", image?.state ?? "unknown");
    put(panel, image ? recipe(image) : null);
  }

  function recipe(image) {
    const { again } = image;
    const isOpen = !SETTLED.has(image.state);
    const isStored = image.state === "stored";
    return [
      h("h2", { class: "prompt" }, image.prompt),
      again?.negative_prompt &&
        h("p", { class: "negative" }, h("span", { class: "faint" }, "without "), again.negative_prompt),
      h(
        "div",
        { class: "actions" },
        again && button("Again with…", { name: "again", kind: "primary needs-submit", press: () => repeat(image) }),
        again && isStored && button("Start from it", { name: "up", kind: "needs-submit", press: () => goOnFrom(image) }),
        image.download_url && h("a", { class: "button", href: image.download_url }, "Download"),
        again && button("Copy", { name: "copy", title: "The job that makes this image", press: () => copy(again) }),
        isOpen && button("Cancel", { name: "stop", kind: "needs-submit", press: cancel }),
      ),
      image.error && h("p", { class: "problem" }, image.error),
      facts("Made with", madeWith(image)),
      facts("How it went", howItWent(image)),
      image.history.length > 0 && [
        h("h3", {}, "Attempts that were lost"),
        h("ol", { class: "history" }, image.history.map((line) => h("li", {}, line))),
      ],
    ];
  }

  function repeat(image) {
    fillForm(image.again);
    location.hash = "#/new";
  }

  /** Fill the form with the same, but starting from this picture. */
  function goOnFrom({ again: { mask_image, strength, hires, ...again }, key }) {
    fillForm({ ...again, image: key });
    location.hash = "#/new";
  }

  async function copy(body) {
    try {
      await navigator.clipboard.writeText(JSON.stringify(body, null, 2));
      say("Copied.");
    } catch {
      say("This browser lets nothing be copied from here.");
    }
  }

  async function cancel() {
    draw({ ...shown, ...(await ask("DELETE", `v1/jobs/${job.id}/images/${index}`, { signal })) });
    gallery.take(shown);
  }

  /** The neighbours' pictures, so that the arrows show them at once. */
  function prefetch() {
    for (const at of [index + 1, index - 1]) {
      const image = gallery.known(at);
      const isWhole = image?.state === "stored" && smallest(image) === image.url; // and no thumbnail of it
      if (isWhole) new Image().src = stillGood(image.shown) ?? image.url;
    }
  }

  function onKey(event) {
    const target = { ArrowLeft: previous, ArrowRight: next }[event.key];
    if (!target || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (target.hasAttribute("href")) location.replace(target.href);
  }

  function onCancel(event) {
    event.preventDefault(); // Esc: the address closes it, so that "back" and the dialog agree
    location.hash = close.getAttribute("href");
  }

  function lead(anchor, at) {
    attribute(anchor, "href", at === null ? null : `#/jobs/${job.id}/${at}`);
    attribute(anchor, "aria-disabled", at === null ? "true" : null);
  }

  signal.addEventListener("abort", () => {
    asked.abort();
    dialog.remove();
  });
  for (const anchor of [previous, next]) {
    anchor.addEventListener("click", (event) => {
      event.preventDefault(); // arrows leave no trail in the browser's history
      if (anchor.hasAttribute("href")) location.replace(anchor.href);
    });
  }

  return {
    open,
    /** Close it; returns the image that was shown, or null. */
    close() {
      if (!dialog.open) return null;
      const last = index;
      index = null;
      asked.abort();
      dialog.close();
      return last;
    },
    update(fresh) {
      job = fresh;
    },
    preview({ index: at, step, steps, url }) {
      if (at !== index || !shown || SETTLED.has(shown.state)) return;
      attribute(stage, "data-state", "rendering");
      if (url) {
        picture.src = url;
        picture.hidden = false;
      }
      text(word, `step ${step} of ${steps}`);
    },
  };
}

function wordFor(image) {
  return { queued: "waits for a seat", rendering: "is being rendered", stored: "" }[image.state] ?? image.state;
}

function facts(name, rows) {
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return [
    h("h3", {}, name),
    h(
      "dl",
      { class: "facts" },
      known.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, String(value)))),
    ),
  ];
}

function madeWith(image) {
  const again = image.again ?? {};
  return [
    ["model", again.model],
    ["seed", image.seed],
    ["steps", again.num_inference_steps],
    ["guidance", again.guidance_scale],
    ["guidance by negative", again.true_cfg_scale],
    ["scheduler", again.scheduler],
    ["size", again.width && `${again.width} × ${again.height}`],
    ["CLIP skip", again.clip_skip || null],
    ["LoRAs", again.loras?.map((lora) => `${lora.name} ${lora.weight}`).join(", ")],
    ["from picture", again.image && `${again.image} at strength ${again.strength}`],
    ["mask", again.mask_image],
    ["ControlNets", again.controlnets?.map((net) => `${net.model} ${net.conditioning_scale}`).join(", ")],
    ["second pass", again.hires && `${number(again.hires.scale)}× at strength ${again.hires.strength}`],
    ["reproducibility", again.reproducibility],
    ["prompt no.", image.prompt_index],
  ];
}

function howItWent(image) {
  return [
    ["state", image.state],
    ["worker", image.worker],
    ["attempts", image.attempts],
    ["in its seat", image.render_s === null ? null : duration(image.render_s)],
    ["GPU time", image.gpu_s === null ? null : duration(image.gpu_s)],
    ["stored", image.stored_at === null ? null : exactly(image.stored_at)],
    ["key", image.key],
  ];
}
