// What an image was made with that the form has no field for: sent along, and shown so that it can be left out.

import { h, put } from "./dom.js";

/** Return the element that shows `draft.also`; `keep()` is called when something of it is left out. */
export function alsoSent(draft, keep) {
  const element = h("div", { class: "also" });
  show();
  return element;

  function show() {
    const names = Object.keys(draft.also);
    put(element, names.length > 0 && h("p", { class: "fine" }, "Also sent, as the image had it:"), names.map(chip));
  }

  function chip(name) {
    const leaveOut = () => {
      delete draft.also[name];
      keep();
      show();
    };
    return h(
      "span",
      { class: "chip" },
      `${name}: ${JSON.stringify(draft.also[name])}`,
      h("button", { type: "button", "aria-label": `Leave out ${name}`, on: { click: leaveOut } }, "×"),
    );
  }
}
