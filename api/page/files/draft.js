// What is written in the form, kept while the tab lives; filled in from an image that is to be made again.

import { CHOICES, FILES, NUMBERS } from "./fields.js";

const DRAFT = "farm.draft";
const TEXTS = ["model", "negative_prompt", "scheduler", "image", "mask_image", "strength"];
const OWN = new Set([...TEXTS, ...NUMBERS, ...Object.keys(CHOICES)]);
const PARTS = new Set(["loras", "controlnets", "hires"]);

/**
 * The texts of the fields by their names, of the form's parts as they keep them, and of pictures their keys; `also` and
 * `output` are what a job has that the form has no field for.
 */
export const draft = restored();

/** Fill the form with a job's body, such as the one that makes an image again. */
export function fillForm({ prompts, output = {}, ...rest }) {
  for (const name of Object.keys(draft)) delete draft[name];
  const { thumbnail_px, ...others } = output;
  Object.assign(draft, { output: others, also: {} });
  for (const [name, usual] of Object.entries(FILES)) {
    draft[name] = String(others[name] ?? usual);
    delete others[name];
  }
  draft.prompts = prompts
    .map((prompt) => (typeof prompt === "string" ? prompt : prompt.prompt).replaceAll("\n", " "))
    .join("\n");
  for (const [name, value] of Object.entries(rest)) {
    if (OWN.has(name)) draft[name] = String(value);
    else if (PARTS.has(name)) draft[name] = value;
    else if (name !== "clip_skip" || value !== 0) draft.also[name] = value;
  }
  keep();
}

/** Keep what is written for this tab. */
export function keep() {
  try {
    sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  } catch {
    // Not kept: a reload begins with an empty form.
  }
}

function restored() {
  try {
    return { also: {}, output: {}, ...JSON.parse(sessionStorage.getItem(DRAFT)) };
  } catch {
    return { also: {}, output: {} };
  }
}
