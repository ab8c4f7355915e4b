// What bends a model to something: LoRAs, and ControlNets that steer it by pictures.

import { get } from "./api.js";
import { h, put } from "./dom.js";
import { makeField, numberField } from "./fields.js";
import { makeFold, makeRows } from "./fold.js";
import { makePicture } from "./picture.js";

const MOST_LORAS = 16;
const MOST_NETS = 4;

/** Make the LoRAs of the form; `changed()` is called when there is another, or one less. */
export function makeLoras({ draft, changed, signal }) {
  let model = null;
  let all = [];
  const known = h("datalist", { id: "known-loras" });
  const rows = makeRows({ add: "Add a LoRA", what: "LoRA", most: MOST_LORAS, makeRow, changed: news });
  const fold = makeFold(["LoRAs"], rows.element, known);

  function makeRow(given, number) {
    const input = h("input", { type: "text", list: known.id, autocomplete: "off", spellcheck: "false" });
    const fields = {
      name: makeField(`lora-${number}`, "Name", input),
      weight: numberField(`lora-${number}-weight`, "Weight", "", { step: "any", placeholder: "1" }),
    };
    return rowOf(fields, given, h("div", { class: "row-fields lora-fields" }, elements(fields)));
  }

  function news() {
    const given = named(rows.rows, "name");
    draft.loras = rows.rows.map((row) => row.texts());
    fold.note(given.map((row) => row.fields.name.input.value.trim()).join(", "));
    changed();
  }

  /** Offer those that are known to fit, and files that nobody has told of what they fit. */
  function offer() {
    const fitting = all.filter(({ family }) => family === null || family === model?.family);
    put(known, fitting.map(({ name }) => h("option", { value: name })));
  }

  get("v1/loras", signal).then(
    ({ data }) => {
      all = data;
      offer();
    },
    () => {}, // the banner tells; a name can be written all the same
  );

  const kept = draft.loras ?? [];
  return {
    element: fold.element,
    fields: () => rows.rows.flatMap((row) => Object.values(row.fields)),
    restore() {
      for (const lora of kept) rows.append(lora);
      fold.element.open = kept.length > 0;
    },
    fit(chosen) {
      model = chosen;
      offer();
    },
    keep: news,
    write(job) {
      const loras = named(rows.rows, "name").map((row) => filled(row, ["name", "weight"]));
      if (loras.length) job.loras = loras;
    },
    find: (name, at, part) => (name === "loras" ? findIn(named(rows.rows, "name"), at, part) : null),
  };
}

/** Make the ControlNets of the form, likewise. */
export function makeNets({ draft, changed, signal }) {
  let model = null;
  const rows = makeRows({ add: "Add a ControlNet", what: "ControlNet", most: MOST_NETS, makeRow, changed: news });
  const fold = makeFold(["ControlNets"], rows.element);

  function makeRow(given, number) {
    const name = (part) => `net-${number}-${part}`;
    const share = { min: 0, max: 1, step: "any" };
    const fields = {
      model: makeField(name("model"), "ControlNet", h("select")),
      image: makePicture({
        name: name("image"),
        label: "What it reads",
        hint: "edges, a depth map, a pose: as this ControlNet wants it",
        changed: news,
        signal,
      }),
      conditioning_scale: numberField(name("scale"), "Scale", "", { min: 0, max: 10, step: "any", placeholder: "1" }),
      guidance_start: numberField(name("start"), "From", "", { ...share, placeholder: "0" }),
      guidance_end: numberField(name("end"), "Until", "share of the steps", { ...share, placeholder: "1" }),
    };
    const { model: net, image, ...numbers } = fields;
    offer(net.input, given.model);
    if (given.image) image.take(given.image);
    const places = [net.element, image.element, h("div", { class: "row-fields net-fields" }, elements(numbers))];
    return rowOf(fields, given, h("div", { class: "row-stack" }, places));
  }

  /** Show what the model has; one that it has not stays, for the farm to say so. */
  function offer(select, wanted = select.value) {
    const names = model?.controlnets ?? [];
    const all = wanted && !names.includes(wanted) ? [wanted, ...names] : names;
    put(select, all.map((name) => h("option", { value: name }, name)));
    if (wanted) select.value = wanted;
  }

  function news() {
    draft.controlnets = rows.rows.map((row) => ({ ...row.texts(), image: row.fields.image.key }));
    fold.note(rows.rows.map((row) => row.fields.model.input.value).join(", "));
    fold.element.hidden = !rows.rows.length && !model?.controlnets.length;
    changed();
  }

  const kept = draft.controlnets ?? [];
  return {
    element: fold.element,
    pictures: () => rows.rows.map((row) => row.fields.image),
    fields: () => rows.rows.flatMap((row) => Object.values(row.fields)),
    restore() {
      for (const net of kept) rows.append(net);
      fold.element.open = kept.length > 0;
    },
    fit(chosen) {
      model = chosen;
      for (const row of rows.rows) offer(row.fields.model.input);
      fold.element.hidden = !rows.rows.length && !model.controlnets.length;
    },
    keep: news,
    write(job) {
      if (!rows.rows.length) return;
      job.controlnets = rows.rows.map((row) => ({
        ...filled(row, ["model", "conditioning_scale", "guidance_start", "guidance_end"]),
        image: row.fields.image.key,
      }));
    },
    /** What stands against sending it. */
    obstacle() {
      const without = rows.rows.find((row) => !row.fields.image.key);
      return without ? [without.fields.image, "A ControlNet reads a picture; there is none yet."] : null;
    },
    find: (name, at, part) => (name === "controlnets" ? findIn(rows.rows, at, part) : null),
  };
}

const elements = (fields) => Object.values(fields).map((field) => field.element);
const named = (rows, name) => rows.filter((row) => row.fields[name].input.value.trim());

function rowOf(fields, given, element) {
  const written = Object.entries(fields).filter(([, field]) => field.input.type !== "file");
  for (const [name, { input }] of written) if (given[name] !== undefined) input.value = given[name];
  const texts = () => Object.fromEntries(written.map(([name, field]) => [name, field.input.value]));
  return { element, fields, texts, input: Object.values(fields)[0].input };
}

/** Return what is written in a row's fields, numbers as numbers; what is empty is left to the farm. */
function filled({ fields }, names) {
  return Object.fromEntries(names.map((name) => [name, fields[name].value]).filter(([, value]) => value !== null));
}

function findIn(rows, at, part) {
  const row = rows[Number(at)];
  return row ? (row.fields[part] ?? Object.values(row.fields)[0]) : null;
}
