// Values to compare: every prompt is rendered with each combination, and one labelled picture shows them side by side.

import { attribute, h } from "./dom.js";
import { makeField } from "./fields.js";
import { makeFold, makeRows } from "./fold.js";

const MOST = 4;
const AXES = {
  num_inference_steps: ["Steps", "10, 20, 30"],
  guidance_scale: ["Guidance", "3, 5, 7"],
  scheduler: ["Scheduler", "euler, dpmpp_2m"],
  seed: ["Seed", "1, 2, 3"],
  strength: ["Strength", "0.4, 0.6, 0.8"],
  width: ["Width", "512, 768"],
  height: ["Height", "512, 768"],
  clip_skip: ["CLIP skip", "0, 1"],
  true_cfg_scale: ["Guidance by negative", "1, 3"],
  loras: ["LoRAs", "none, ink:0.5, ink:0.6 + grain:0.3"],
  negative_prompt: ["Negative prompt", "blurry | text, logo"],
};
const WORDS = new Set(["scheduler", "negative_prompt"]);

/** Make this part of the form; `changed()` is called when there is another field to compare, or one less. */
export function makeCompare({ draft, changed }) {
  const rows = makeRows({ add: "Add a field", what: "compared field", most: MOST, makeRow, changed: news });
  const grid = makeField("grid", "One labelled picture of all images", h("input", { type: "checkbox" }));
  const fold = makeFold(
    ["Compare", "X/Y/Z plot"],
    h("p", { class: "fine" }, "Each prompt with every combination of these values."),
    rows.element,
    grid.element,
  );

  function makeRow({ field, values = "" }, number) {
    const free = Object.keys(AXES).find((name) => !rows.rows.some((row) => row.field === name));
    const options = Object.entries(AXES).map(([name, [label]]) => h("option", { value: name }, label));
    const which = makeField(`axis-${number}`, "Field", h("select", {}, options));
    const what = makeField(`axis-${number}-values`, "Values", h("input", { type: "text", autocomplete: "off" }));
    which.input.value = field ?? free;
    what.input.value = values;
    const hint = () => attribute(what.input, "placeholder", AXES[which.input.value][1]);
    which.input.addEventListener("change", hint);
    hint();
    return {
      element: h("div", { class: "row-fields axis-fields" }, which.element, what.element),
      input: which.input,
      fields: [which, what],
      what,
      get field() {
        return which.input.value;
      },
      get values() {
        return valuesOf(which.input.value, what.input.value);
      },
    };
  }

  function news() {
    const isFirst = rows.rows.length === 1 && !draft.matrix?.length;
    if (isFirst) grid.input.checked = true;
    draft.matrix = rows.rows.map((row) => ({ field: row.field, values: row.what.input.value }));
    draft.grid = grid.input.checked;
    fold.note(varied().map((row) => `${AXES[row.field][0].toLowerCase()} ×${row.values.length}`).join(", "));
    changed();
  }

  const varied = () => rows.rows.filter((row) => row.values.length);
  const kept = draft.matrix ?? [];
  return {
    element: fold.element,
    fields: () => [...rows.rows.flatMap((row) => row.fields), grid],
    restore() {
      grid.input.checked = Boolean(draft.grid);
      for (const axis of kept) rows.append(axis);
      fold.element.open = kept.length > 0 || Boolean(draft.grid);
    },
    keep: news,
    /** How many images each one becomes. */
    times: () => varied().reduce((product, row) => product * row.values.length, 1),
    write(job) {
      if (varied().length) job.matrix = Object.fromEntries(varied().map((row) => [row.field, row.values]));
      if (grid.input.checked) job.grid = true;
    },
    /** What stands against sending it: two rows of one field, of which a job would have the last alone. */
    obstacle() {
      const twice = rows.rows.find((row, at) => rows.rows.slice(0, at).some((other) => other.field === row.field));
      return twice ? [twice.fields[0], "This field is compared already."] : null;
    },
    find(name, axis) {
      if (name === "grid") return grid;
      if (name !== "matrix") return null;
      return (rows.rows.find((row) => row.field === axis) ?? rows.rows[0])?.what ?? null;
    },
  };
}

function valuesOf(field, written) {
  const parts = written.split(field === "negative_prompt" ? "|" : ",").map((part) => part.trim());
  const values = field === "negative_prompt" && written.trim() ? parts : parts.filter(Boolean);
  if (field === "loras") return values.map(lorasOf);
  return values.map((value) => (WORDS.has(field) || Number.isNaN(Number(value)) ? value : Number(value)));
}

/** Read LoRAs as the grid names them: `none`, `ink:0.5`, `ink:0.6 + grain:0.3`. */
function lorasOf(written) {
  if (written === "none") return [];
  return written.split("+").map((part) => {
    const [name, weight] = part.split(":").map((word) => word.trim());
    return weight === undefined ? { name } : { name, weight: Number.isNaN(Number(weight)) ? weight : Number(weight) };
  });
}
