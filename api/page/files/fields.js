// The fields of the form that writes a job: each with its label, its hint, and a place for what is wrong with it.

import { attribute, h, put, text } from "./dom.js";

export const NUMBERS = ["num_images_per_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale"];
export const CHOICES = { priority: "normal", reproducibility: "fast" };
/** Fields of `output`, and what they are when nobody says. */
export const FILES = { format: "png", quality: "", upscale: "" };
const FORMATS = ["png", "jpeg", "webp", "avif"];

/** Make those that every job has, by their names in the API; each `{element, input, hint, value, blame(message)}`. */
export function makeFields() {
  const words = (rows, placeholder) => h("textarea", { rows, spellcheck: "true", placeholder });
  const choice = (values) => h("select", {}, values.map(([value, label]) => h("option", { value }, label ?? value)));
  return {
    prompts: makeField("prompts", "Prompts, one a line", words(6, "a red heart left of a green house at night")),
    negative_prompt: makeField("negative_prompt", "Negative prompt", words(2, "what should not be there")),
    model: makeField("model", "Model", h("select")),
    num_images_per_prompt: numberField("num_images_per_prompt", "Images of each", "", { min: 1, placeholder: "1" }),
    seed: numberField("seed", "Seed", "counts up by image", { min: -1, placeholder: "drawn" }),
    width: numberField("width", "Width"),
    height: numberField("height", "Height"),
    num_inference_steps: numberField("num_inference_steps", "Steps", "", { min: 1 }),
    guidance_scale: numberField("guidance_scale", "Guidance", "", { min: 0, max: 100, step: "any" }),
    scheduler: makeField("scheduler", "Scheduler", h("select")),
    template: makeField(
      "template",
      "Templates",
      choice([
        ["off", "off: braces are braces"],
        ["random", "random: one prompt drawn of each"],
        ["combinatorial", "combinatorial: all that each can say"],
      ]),
      "{a|b} and __wildcard__ in prompts",
    ),
    format: makeField("format", "Format", choice(FORMATS.map((name) => [name]))),
    quality: numberField("quality", "Quality", "", { min: 1, max: 100, placeholder: "90" }),
    upscale: makeField(
      "upscale",
      "Enlarged as well",
      choice([
        ["", "no"],
        ["2", "twice"],
        ["3", "three times"],
        ["4", "four times"],
      ]),
    ),
    priority: makeField("priority", "Priority", choice([["normal"], ["interactive"], ["bulk"]])),
    reproducibility: makeField(
      "reproducibility",
      "Reproducibility",
      choice([
        ["fast", "fast: the last bits may differ"],
        ["invariant", "invariant: always the same bytes"],
      ]),
    ),
    label: makeField("label", "Name of the job", h("input", { type: "text", maxlength: 256, placeholder: "yours to choose" })),
  };
}

/** Show in them what `model` would choose itself; `wanted` is the scheduler that was chosen, if it has that. */
export function fitFields(fields, model, wanted) {
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
  put(
    fields.scheduler.input,
    h("option", { value: "" }, `${defaults.scheduler} (the model's)`),
    model.schedulers.filter((name) => name !== defaults.scheduler).map((name) => h("option", { value: name }, name)),
  );
  fields.scheduler.input.value = model.schedulers.includes(wanted) && wanted !== defaults.scheduler ? wanted : "";
  text(fields.model.hint, model.description);
}

/** Make a field for a number. */
export function numberField(name, label, hint = "", props = {}) {
  const inputmode = props.step === "any" ? "decimal" : "numeric";
  return makeField(name, label, h("input", { type: "number", inputmode, autocomplete: "off", ...props }), hint);
}

/** Make a field; `shown` is what stands there for its input, if that is not alone. */
export function makeField(name, label, input, hint = "", shown = input) {
  const id = `field-${name}`;
  const note = h("span", { class: "hint", id: `${id}-note` }, hint);
  attribute(input, "id", id);
  attribute(input, "name", name);
  attribute(input, "aria-describedby", note.id);
  const element = h("div", { class: `field field-${name}` }, h("label", { htmlFor: id }, label), shown, note);
  let isBlamed = false;
  const blame = (message) => {
    if (message === null && !isBlamed) return;
    isBlamed = message !== null;
    text(note, message ?? hint);
    element.classList.toggle("is-wrong", isBlamed);
    attribute(input, "aria-invalid", isBlamed ? "true" : null);
  };
  input.addEventListener("input", () => blame(null));
  return {
    element,
    input,
    hint: note,
    blame,
    /** What is written there, as a number where it is one; null where nothing is. */
    get value() {
      const written = input.value.trim();
      if (written === "") return null;
      return input.type === "number" && !Number.isNaN(Number(written)) ? Number(written) : written;
    },
  };
}
