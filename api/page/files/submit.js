// The form that writes a job. What it leaves empty is the model's own choice; what it has no field for goes along.

import { alsoSent } from "./also.js";
import { Problem, ask } from "./api.js";
import { makeCompare } from "./compare.js";
import { button, h, put, say, text } from "./dom.js";
import { draft, keep } from "./draft.js";
import { CHOICES, FILES, NUMBERS, fitFields, makeFields } from "./fields.js";
import { forecast } from "./forecast.js";
import { makeFold } from "./fold.js";
import { count, counted } from "./format.js";
import { makeHires } from "./hires.js";
import { pictureFieldOf } from "./picture.js";
import { farm, mostLikelyFirst, pulse, refreshModels } from "./pulse.js";
import { makeStart } from "./start.js";
import { makeLoras, makeNets } from "./steering.js";

const SMALL_PX = 512;
const TEMPLATE = /\{[^{}]*\|[^{}]*\}|\{\d|__[\w*/-]+__/; // what another mode of templates would read as one

/** Show the form in `root`. */
export function submitView(root, { title, signal }) {
  title("New job");
  let repeatable = { body: null, key: null };
  let isWhole = false; // until all is filled in that was written before
  const fields = makeFields();
  const start = makeStart({ draft, changed: news, size, sizeLike, resize, signal });
  const nets = makeNets({ draft, changed: news, signal });
  const compare = makeCompare({ draft, changed: news });
  const parts = [start, makeLoras({ draft, changed: news, signal }), nets, compare, makeHires({ draft })];
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const summary = h("p", { class: "summary" });
  const preview = h("div", { class: "preview", "aria-live": "polite" });
  const look = button("Preview", { press: () => during(look, showPreview) });
  const shortcut = h("kbd", { "aria-hidden": "true" }, "Ctrl ↵");
  const go = h("button", { type: "submit", class: "button primary" }, "Render", shortcut);
  const pair = (...names) => h("div", { class: "pair" }, names.map((name) => fields[name].element));
  const files = makeFold(
    ["Files, order and reproducibility"],
    pair("format", "quality"),
    pair("upscale", "priority"),
    fields.reproducibility.element,
    fields.label.element,
  );
  const form = h(
    "form",
    { class: "job-form", novalidate: true, on: { submit, input: changed, change: changed, keydown: onKey } },
    h(
      "div",
      { class: "words" },
      fields.prompts.element,
      fields.negative_prompt.element,
      h("div", { class: "folds" }, parts.slice(0, 4).map((part) => part.element)),
      alsoSent(draft, keep),
      h("div", { class: "send" }, problem, h("div", { class: "actions" }, go, look, summary), preview),
    ),
    h(
      "div",
      { class: "knobs" },
      fields.model.element,
      pair("num_images_per_prompt", "seed"),
      pair("width", "height"),
      pair("num_inference_steps", "guidance_scale"),
      fields.scheduler.element,
      fields.template.element,
      h("div", { class: "folds" }, parts[4].element, files.element),
    ),
  );
  put(root, h("div", { class: "tools" }, h("h1", {}, "New job")), form);

  function showModels() {
    const chosen = fields.model.input.value || draft.model;
    const models = mostLikelyFirst(farm.models);
    put(
      fields.model.input,
      models.map(({ id, available }) => h("option", { value: id }, available ? id : `${id} (no worker serves it)`)),
    );
    if (models.some((model) => model.id === chosen)) fields.model.input.value = chosen;
    fitModel();
  }

  /** Show what the model would choose itself, and what it has to offer. */
  function fitModel() {
    const model = chosenModel();
    if (!model) return;
    fitFields(fields, model, fields.scheduler.input.value || draft.scheduler || "");
    for (const part of parts) part.fit?.(model);
  }

  const chosenModel = () => farm.models.find((model) => model.id === fields.model.input.value);

  /** What is rendered, in pixels; without numbers until the models are known. */
  function size() {
    const model = chosenModel();
    if (!model) return {};
    return { width: fields.width.value ?? model.defaults.width, height: fields.height.value ?? model.defaults.height };
  }

  /** Return the size that has the shape of a picture, as near as the model has it, and about the model's pixels. */
  function sizeLike({ width, height }) {
    const { defaults, size_multiple: step, min_size: least, max_size: most } = chosenModel();
    const scale = Math.sqrt((defaults.width * defaults.height) / (width * height));
    const fitted = (side) => Math.min(most, Math.max(least, Math.round((side * scale) / step) * step));
    return { width: fitted(width), height: fitted(height) };
  }

  function resize({ width, height }) {
    [fields.width.input.value, fields.height.input.value] = [width, height];
    changed({ target: fields.width.input });
  }

  function changed({ target }) {
    if (target === fields.model.input) fitModel();
    for (const [name, field] of Object.entries(fields)) draft[name] = field.input.value;
    for (const part of parts) part.keep();
    news();
  }

  /** Something is written, or there is a picture or a row more or less. */
  function news() {
    if (!isWhole) return;
    keep();
    start.fit();
    summarise();
  }

  function summarise() {
    const prompts = lines();
    const each = Number(fields.num_images_per_prompt.input.value || 1);
    const mode = fields.template.input.value;
    const hasTemplate = prompts.some((prompt) => TEMPLATE.test(prompt));
    fields.template.element.hidden = !hasTemplate && mode === "off";
    fields.quality.element.hidden = fields.format.input.value === "png";
    const [times, total] = [compare.times(), counted(prompts.length * each * compare.times(), "image")];
    const factors = [counted(prompts.length, "prompt"), count(each), times > 1 && counted(times, "combination")];
    const isOpen = mode === "combinatorial" && hasTemplate;
    const product = prompts.length ? `${factors.filter(Boolean).join(" × ")} = ${total}` : "";
    text(summary, isOpen ? "as many images as the templates say: Preview tells" : product);
  }

  const lines = () => fields.prompts.input.value.split("\n").map((line) => line.trim()).filter(Boolean);

  function body() {
    const job = { model: fields.model.input.value, prompts: lines(), ...draft.also };
    for (const name of [...NUMBERS, "negative_prompt", "scheduler"]) {
      if (fields[name].value !== null) job[name] = fields[name].value;
    }
    for (const [name, usual] of Object.entries(CHOICES)) {
      if (fields[name].value !== usual) job[name] = fields[name].value;
    }
    if (fields.template.input.value !== "off") job.template = { mode: fields.template.input.value };
    job.output = { ...draft.output, format: fields.format.input.value };
    if (job.output.format !== "png" && fields.quality.value !== null) job.output.quality = fields.quality.value;
    if (fields.upscale.value !== null) job.output.upscale = Number(fields.upscale.value);
    const { width, height } = size();
    // A sheet of large pictures is megabytes a screen; of small ones it is not.
    if (Math.max(width, height) > SMALL_PX) job.output.thumbnail_px = 320;
    if (fields.label.value !== null) job.labels = { name: fields.label.value };
    for (const part of parts) part.write(job);
    return job;
  }

  function submit(event) {
    event.preventDefault();
    during(go, send);
  }

  /** Do it once at a time, when no picture is on its way any more and nothing stands against it. */
  async function during(pressed, act) {
    if (pressed.disabled) return;
    pressed.disabled = true;
    try {
      await Promise.all(pictures().map((picture) => picture.settled()));
      if (!signal.aborted && check()) await act();
    } catch (error) {
      blame(error);
    } finally {
      pressed.disabled = false;
    }
  }

  async function send() {
    const job = body();
    const written = JSON.stringify(job);
    // The same job under the same key: a second click, or one after an answer that got lost, makes no second job.
    if (repeatable.body !== written) repeatable = { body: written, key: newKey() };
    const made = await ask("POST", "v1/jobs", { body: job, signal, headers: { "Idempotency-Key": repeatable.key } });
    say(`The farm has taken a job of ${counted(made.total, "image")}.`);
    location.hash = `#/jobs/${made.id}`;
  }

  async function showPreview() {
    put(preview, forecast(await ask("POST", "v1/jobs:preview", { body: body(), signal })));
  }

  const pictures = () => [...start.pictures(), ...nets.pictures()];
  const allFields = () => [...Object.values(fields), ...parts.flatMap((part) => part.fields())];

  /** Say at once what needs no asking. */
  function check() {
    problem.hidden = true;
    put(preview);
    for (const field of allFields()) if (!field.obstacle) field.blame(null);
    const isNoNumber = ({ input: { validity } }) => !validity.valid && validity.badInput;
    const wrong = [
      !lines().length && [fields.prompts, "A prompt a line; there is none yet."],
      ...allFields().filter(isNoNumber).map((field) => [field, "This is no number."]),
      ...pictures().map((field) => field.obstacle && [field, field.obstacle]),
      nets.obstacle(),
      compare.obstacle(),
    ].filter(Boolean);
    for (const [field, message] of wrong) field.blame(message);
    if (wrong.length) show(wrong[0][0]);
    return !wrong.length;
  }

  /** Bring a field to where it is seen, and the keyboard to it. */
  function show({ element, input }) {
    for (let at = element.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
    (input.hidden ? element.querySelector("button:not([hidden])") : input).focus();
  }

  /** Show a problem where its field is; what belongs to none above the buttons. */
  function blame(error) {
    if (!(error instanceof Problem)) throw error;
    const homeless = [];
    let first = null;
    for (const { field: path, message, choices } of error.errors) {
      const [name, at, part] = path.split(".");
      const told = choices?.length ? `${message} (${choices.slice(0, 6).join(", ")})` : message;
      const field = find(name, at, part);
      if (field) {
        const place = { prompts: "Line", matrix: "Value" }[name];
        const number = name === "matrix" ? part : at;
        field.blame(place && number !== undefined ? `${place} ${Number(number) + 1}: ${told}` : told);
        first ??= field;
      } else {
        homeless.push(`${path}: ${told}`);
      }
    }
    if (!error.errors.length) homeless.push(error.message);
    text(problem, homeless.join(" "));
    problem.hidden = !homeless.length;
    if (first) show(first);
  }

  function find(name, at, part) {
    if (name === "output") return fields[at] ?? fields.format;
    if (name === "labels") return fields.label;
    return fields[name] ?? parts.map((each) => each.find(name, at, part)).find(Boolean);
  }

  function onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }

  /** A picture that is dropped or pasted goes to the field it is dropped on, else to the one to start from. */
  function receive(event, transfer) {
    const file = [...(transfer?.files ?? [])][0];
    if (!file) return;
    event.preventDefault();
    const field = pictureFieldOf(event.target) ?? start.picture;
    show(field);
    field.upload(file);
  }

  for (const [name, field] of Object.entries(fields)) {
    const isFilledLater = name === "model" || name === "scheduler"; // when the models are known
    if (draft[name] && !isFilledLater) field.input.value = draft[name];
  }
  const isUsual = Object.entries({ ...CHOICES, ...FILES }).every(([name, usual]) => (draft[name] ?? usual) === usual);
  files.element.open = !isUsual || Boolean(draft.label);
  for (const part of parts) part.restore();
  isWhole = true;
  pulse.addEventListener("models", showModels, { signal });
  showModels();
  refreshModels(signal).catch(() => {}); // the banner tells
  summarise();
  document.addEventListener("paste", (event) => receive(event, event.clipboardData), { signal });
  document.addEventListener("dragover", (event) => event.preventDefault(), { signal });
  document.addEventListener("drop", (event) => receive(event, event.dataTransfer), { signal });
  fields.prompts.input.focus();
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
