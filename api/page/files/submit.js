// The form that writes a job. What it leaves empty is the model's own choice; what it has no field for goes along.

import { Problem, ask } from "./api.js";
import { attribute, button, h, put, say, text } from "./dom.js";
import { draft, keep } from "./draft.js";
import { CHOICES, NUMBERS, makeFields } from "./fields.js";
import { count, counted, duration, number } from "./format.js";
import { farm, mostLikelyFirst, pulse, refreshModels } from "./pulse.js";

const SMALL_PX = 512;
const TEMPLATE = /\{[^{}]*\|[^{}]*\}|\{\d|__[\w*/-]+__/; // what another mode of templates would read as one

/** Show the form in `root`. */
export function submitView(root, { title, signal }) {
  title("New job");
  const fields = makeFields();
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const summary = h("p", { class: "summary" });
  const preview = h("div", { class: "preview", "aria-live": "polite" });
  const also = h("div", { class: "also" });
  const look = button("Preview", { press: showPreview });
  const shortcut = h("kbd", { "aria-hidden": "true" }, "Ctrl ↵");
  const go = h("button", { type: "submit", class: "button primary" }, "Render", shortcut);
  const form = h(
    "form",
    { class: "job-form", novalidate: true, on: { submit, input: changed, change: changed, keydown: onKey } },
    h(
      "div",
      { class: "words" },
      fields.prompts.element,
      fields.negative_prompt.element,
      also,
      h("div", { class: "send" }, problem, h("div", { class: "actions" }, go, look, summary), preview),
    ),
    h(
      "div",
      { class: "knobs" },
      fields.model.element,
      h("div", { class: "pair" }, fields.num_images_per_prompt.element, fields.seed.element),
      h("div", { class: "pair" }, fields.width.element, fields.height.element),
      h("div", { class: "pair" }, fields.num_inference_steps.element, fields.guidance_scale.element),
      fields.scheduler.element,
      fields.template.element,
      h(
        "details",
        {},
        h("summary", {}, "Files, order and reproducibility"),
        h("div", { class: "pair" }, fields.format.element, fields.priority.element),
        fields.reproducibility.element,
        fields.label.element,
      ),
    ),
  );
  put(root, h("div", { class: "tools" }, h("h1", {}, "New job")), form);
  const isUsual = Object.entries(CHOICES).every(([name, usual]) => (draft[name] ?? usual) === usual);
  form.querySelector("details").open = !isUsual || Boolean(draft.label);
  let repeatable = { body: null, key: null };

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

  /** Show what the model would choose itself. */
  function fitModel() {
    const model = chosenModel();
    if (!model) return;
    const { defaults } = model;
    for (const name of ["width", "height"]) {
      const { input } = fields[name];
      attribute(input, "placeholder", defaults[name]);
      attribute(input, "step", model.size_multiple);
      attribute(input, "min", model.min_size);
      attribute(input, "max", model.max_size);
    }
    attribute(fields.num_inference_steps.input, "placeholder", defaults.num_inference_steps);
    attribute(fields.num_inference_steps.input, "max", model.max_steps);
    attribute(fields.guidance_scale.input, "placeholder", defaults.guidance_scale);
    const chosen = fields.scheduler.input.value || draft.scheduler || "";
    put(
      fields.scheduler.input,
      h("option", { value: "" }, `${defaults.scheduler} (the model's)`),
      model.schedulers.filter((name) => name !== defaults.scheduler).map((name) => h("option", { value: name }, name)),
    );
    fields.scheduler.input.value = model.schedulers.includes(chosen) && chosen !== defaults.scheduler ? chosen : "";
    text(fields.model.hint, model.description);
  }

  const chosenModel = () => farm.models.find((model) => model.id === fields.model.input.value);

  function changed({ target }) {
    if (target === fields.model.input) fitModel();
    for (const [name, field] of Object.entries(fields)) draft[name] = field.input.value;
    keep();
    const own = Object.values(fields).find((field) => field.input === target);
    own?.blame(null);
    summarise();
  }

  function summarise() {
    const prompts = lines();
    const each = Number(fields.num_images_per_prompt.input.value || 1);
    const mode = fields.template.input.value;
    const hasTemplate = prompts.some((prompt) => TEMPLATE.test(prompt));
    fields.template.element.hidden = !hasTemplate && mode === "off";
    const total = counted(prompts.length * each, "image");
    const product = `${counted(prompts.length, "prompt")} × ${count(each)} = ${total}`;
    const isOpen = mode === "combinatorial" && hasTemplate;
    text(summary, isOpen ? "as many images as the templates say: Preview tells" : prompts.length ? product : "");
  }

  const lines = () => fields.prompts.input.value.split("\n").map((line) => line.trim()).filter(Boolean);

  function body() {
    const model = chosenModel();
    const sideOf = (name) => Number(fields[name].input.value) || model?.defaults[name] || 0;
    const job = { model: fields.model.input.value, prompts: lines(), ...draft.also };
    for (const name of NUMBERS) {
      const given = fields[name].input.value.trim();
      if (given !== "") job[name] = Number.isNaN(Number(given)) ? given : Number(given);
    }
    for (const name of ["negative_prompt", "scheduler"]) {
      if (fields[name].input.value.trim()) job[name] = fields[name].input.value.trim();
    }
    for (const [name, usual] of Object.entries(CHOICES)) {
      if (fields[name].input.value !== usual) job[name] = fields[name].input.value;
    }
    if (fields.template.input.value !== "off") job.template = { mode: fields.template.input.value };
    job.output = { ...draft.output, format: fields.format.input.value };
    // A sheet of large pictures is megabytes a screen; of small ones it is not.
    if (Math.max(sideOf("width"), sideOf("height")) > SMALL_PX) job.output.thumbnail_px = 320;
    if (fields.label.input.value.trim()) job.labels = { name: fields.label.input.value.trim() };
    return job;
  }

  async function submit(event) {
    event.preventDefault();
    if (go.disabled || !check()) return;
    const job = body();
    const written = JSON.stringify(job);
    // The same job under the same key: a second click, or one after an answer that got lost, makes no second job.
    if (repeatable.body !== written) repeatable = { body: written, key: newKey() };
    go.disabled = true;
    try {
      const made = await ask("POST", "v1/jobs", { body: job, signal, headers: { "Idempotency-Key": repeatable.key } });
      say(`The farm has taken a job of ${counted(made.total, "image")}.`);
      location.hash = `#/jobs/${made.id}`;
    } catch (error) {
      blame(error);
    } finally {
      go.disabled = false;
    }
  }

  /** Say at once what needs no asking. */
  function check() {
    clear();
    put(preview);
    const given = lines().length > 0;
    if (!given) fields.prompts.blame("A prompt a line; there is none yet.");
    const wrong = Object.values(fields).find((field) => !field.input.validity.valid && field.input.validity.badInput);
    wrong?.blame("This is no number.");
    (given ? wrong : fields.prompts)?.input.focus();
    return given && !wrong;
  }

  function clear() {
    problem.hidden = true;
    for (const field of Object.values(fields)) field.blame(null);
  }

  /** Show a problem where its field is; what belongs to none above the buttons. */
  function blame(error) {
    if (!(error instanceof Problem)) throw error;
    const homeless = [];
    let first = null;
    for (const { field: path, message, choices } of error.errors) {
      const [name, at] = path.split(".");
      const field = fields[name === "output" ? "format" : name === "labels" ? "label" : name];
      const told = choices?.length ? `${message} (${choices.slice(0, 6).join(", ")})` : message;
      if (field) {
        field.blame(name === "prompts" && at !== undefined ? `Line ${Number(at) + 1}: ${told}` : told);
        first ??= field.input;
      } else {
        homeless.push(`${path}: ${told}`);
      }
    }
    if (!error.errors.length) homeless.push(error.message);
    text(problem, homeless.join(" "));
    problem.hidden = !homeless.length;
    first?.closest("details")?.setAttribute("open", "");
    first?.focus();
  }

  async function showPreview() {
    if (!check()) return;
    look.disabled = true;
    try {
      put(preview, describe(await ask("POST", "v1/jobs:preview", { body: body(), signal })));
    } catch (error) {
      blame(error);
    } finally {
      look.disabled = false;
    }
  }

  function onKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  }

  function showAlso() {
    const names = Object.keys(draft.also ?? {});
    put(
      also,
      names.length > 0 && h("p", { class: "fine" }, "Also sent, as the image had it:"),
      names.map((name) =>
        h(
          "span",
          { class: "chip" },
          `${name}: ${JSON.stringify(draft.also[name])}`,
          h(
            "button",
            {
              type: "button",
              "aria-label": `Leave out ${name}`,
              on: {
                click: () => {
                  delete draft.also[name];
                  keep();
                  showAlso();
                },
              },
            },
            "×",
          ),
        ),
      ),
    );
  }

  for (const [name, field] of Object.entries(fields)) {
    if (draft[name] !== undefined && field.input.tagName !== "SELECT") field.input.value = draft[name];
    if (draft[name] && (name in CHOICES || name === "format" || name === "template")) field.input.value = draft[name];
  }
  pulse.addEventListener("models", showModels, { signal });
  showModels();
  refreshModels(signal).catch(() => {}); // the banner tells
  showAlso();
  summarise();
  fields.prompts.input.focus();
}

// -- what a preview tells

function describe({ num_images, num_prompts, prompts, cost, images_ahead, workers, eta_s }) {
  const figures = [
    counted(num_images, "image"),
    `of ${counted(num_prompts, "prompt")}`,
    eta_s !== null && `there in about ${duration(eta_s)}`,
    images_ahead > 0 && `behind ${counted(images_ahead, "other")}`,
    cost.gpu_s !== null && `${duration(cost.gpu_s)} of GPU time`,
    cost.price !== null && `at a price of ${number(cost.price, 2)}`,
    workers === 0 && "no worker serves this model now",
  ];
  const more = num_prompts - prompts.length;
  return [
    h("p", {}, figures.filter(Boolean).join(" · ")),
    h("ol", {}, prompts.map((each) => h("li", {}, each.prompt, h("span", { class: "faint" }, ` seed ${each.seed}`)))),
    more > 0 && h("p", { class: "faint" }, `and ${counted(more, "more prompt")}`),
  ];
}

function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
