// The fields of the form that writes a job: each with its label, its hint, and a place for what is wrong with it.

import { attribute, h, text } from "./dom.js";

export const NUMBERS = ["num_images_per_prompt", "seed", "width", "height", "num_inference_steps", "guidance_scale"];
export const CHOICES = { priority: "normal", reproducibility: "fast" };
const FORMATS = ["png", "jpeg", "webp", "avif"];

/** Make all of them, by their names in the API; each `{element, input, hint, blame(message)}`. */
export function makeFields() {
  const of = (name, label, input, hint = "") => makeField(name, label, input, hint);
  const numeric = (props) => h("input", { type: "number", inputmode: "numeric", autocomplete: "off", ...props });
  const words = (rows, placeholder) => h("textarea", { rows, spellcheck: "true", placeholder });
  const choice = (values) => h("select", {}, values.map(([value, label]) => h("option", { value }, label ?? value)));
  return {
    prompts: of("prompts", "Prompts, one a line", words(9, "a red heart left of a green house at night")),
    negative_prompt: of("negative_prompt", "Negative prompt", words(2, "what should not be there")),
    model: of("model", "Model", h("select")),
    num_images_per_prompt: of("num_images_per_prompt", "Images of each", numeric({ min: 1, placeholder: "1" })),
    seed: of("seed", "Seed", numeric({ min: -1, placeholder: "drawn" }), "counts up by image"),
    width: of("width", "Width", numeric()),
    height: of("height", "Height", numeric()),
    num_inference_steps: of("num_inference_steps", "Steps", numeric({ min: 1 })),
    guidance_scale: of("guidance_scale", "Guidance", numeric({ min: 0, max: 100, step: "any", inputmode: "decimal" })),
    scheduler: of("scheduler", "Scheduler", h("select")),
    template: of(
      "template",
      "Templates",
      choice([
        ["off", "off: braces are braces"],
        ["random", "random: one prompt drawn of each"],
        ["combinatorial", "combinatorial: all that each can say"],
      ]),
      "{a|b} and __wildcard__ in prompts",
    ),
    format: of("format", "Format", choice(FORMATS.map((name) => [name]))),
    priority: of("priority", "Priority", choice([["normal"], ["interactive"], ["bulk"]])),
    reproducibility: of(
      "reproducibility",
      "Reproducibility",
      choice([
        ["fast", "fast: the last bits may differ"],
        ["invariant", "invariant: always the same bytes"],
      ]),
    ),
    label: of("label", "Name of the job", h("input", { type: "text", maxlength: 256, placeholder: "yours to choose" })),
  };
}

function makeField(name, label, input, hint) {
  const id = `field-${name}`;
  const note = h("span", { class: "hint", id: `${id}-note` }, hint);
  attribute(input, "id", id);
  attribute(input, "name", name);
  attribute(input, "aria-describedby", note.id);
  const element = h("div", { class: `field field-${name}` }, h("label", { htmlFor: id }, label), input, note);
  let isBlamed = false;
  return {
    element,
    input,
    hint: note,
    blame(message) {
      if (message === null && !isBlamed) return;
      isBlamed = message !== null;
      text(note, message ?? hint);
      element.classList.toggle("is-wrong", isBlamed);
      attribute(input, "aria-invalid", isBlamed ? "true" : null);
    },
  };
}
