// The second pass at a larger size, which others call hires fix.

import { h } from "./dom.js";
import { makeField, numberField } from "./fields.js";
import { makeFold } from "./fold.js";

/** Make this part of the form. */
export function makeHires({ draft }) {
  const share = { min: 0, max: 1, step: "any", placeholder: "0.7" };
  const upscaler = h("select", {}, ["latent", "lanczos"].map((name) => h("option", { value: name }, name)));
  const fields = {
    scale: numberField("hires-scale", "Times as large", "", { min: 1, max: 8, step: "any", placeholder: "no" }),
    strength: numberField("hires-strength", "Strength", "", share),
    num_inference_steps: numberField("hires-steps", "Steps", "", { min: 1, placeholder: "as the first" }),
    upscaler: makeField("hires-upscaler", "Enlarged by", upscaler),
  };
  const fold = makeFold(
    ["Second pass, larger", "hires fix"],
    h("div", { class: "pair" }, fields.scale.element, fields.strength.element),
    h("div", { class: "pair" }, fields.num_inference_steps.element, fields.upscaler.element),
  );
  const kept = draft.hires ?? {};

  function keep() {
    draft.hires = Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.input.value]));
    fold.note(fields.scale.value === null ? "" : `${fields.scale.value} times as large`);
  }

  return {
    element: fold.element,
    fields: () => Object.values(fields),
    restore() {
      for (const [name, field] of Object.entries(fields)) if (kept[name]) field.input.value = kept[name];
      fold.element.open = Boolean(kept.scale);
      keep();
    },
    keep,
    write(job) {
      if (fields.scale.value === null) return;
      const written = Object.entries(fields).map(([name, field]) => [name, field.value]);
      job.hires = Object.fromEntries(written.filter(([, value]) => value !== null));
    },
    find: (name, part) => (name === "hires" ? (fields[part] ?? fields.scale) : null),
  };
}
