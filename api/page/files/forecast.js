// What a preview tells of a job before it is sent.

import { h } from "./dom.js";
import { counted, duration, number } from "./format.js";

// What prompts of the same words may differ in.
const VARIES = {
  seed: "seed",
  num_inference_steps: "steps",
  guidance_scale: "guidance",
  scheduler: "",
  width: "width",
  height: "height",
  strength: "strength",
  loras: "LoRAs",
  negative_prompt: "without",
};

/** Return the elements that show the answer of `POST /v1/jobs:preview`. */
export function forecast({ num_images, num_prompts, prompts, cost, images_ahead, workers, eta_s }) {
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
  const varied = Object.keys(VARIES).filter((name) => name === "seed" || isVaried(prompts, name));
  return [
    h("p", {}, figures.filter(Boolean).join(" · ")),
    h("ol", {}, prompts.map((each) => h("li", {}, each.prompt, h("span", { class: "faint" }, ` ${told(each, varied)}`)))),
    more > 0 && h("p", { class: "faint" }, `and ${counted(more, "more prompt")}`),
  ];
}

const isVaried = (prompts, name) => new Set(prompts.map((each) => JSON.stringify(each[name]))).size > 1;

function told(prompt, names) {
  return names.map((name) => `${VARIES[name]} ${inWords(prompt[name])}`.trim()).join(" · ");
}

/** LoRAs are told as the grid names them. */
function inWords(value) {
  const words = Array.isArray(value) ? value.map((lora) => `${lora.name}:${lora.weight}`).join(" + ") : value;
  return words === "" ? "none" : words;
}
