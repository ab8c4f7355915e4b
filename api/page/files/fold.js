// The parts of the form that are folded away until they are wanted, and the rows that some of them are made of.

import { button, h, text } from "./dom.js";

/** Make one; `.note(words)` says what is in it, also while it is closed, and `otherwise` what others call it. */
export function makeFold([title, otherwise = ""], ...content) {
  const note = h("span", { class: "fold-note" }, otherwise);
  const element = h("details", { class: "fold" }, h("summary", {}, h("span", {}, title), note), ...content);
  return { element, note: (words) => text(note, words || otherwise) };
}

/**
 * Make a list that grows: `makeRow(given, number)` returns `{element, input, ...}`, the button `add` makes an empty one,
 * and each has a button that takes it away (`what` it is). `changed()` is called after both.
 */
export function makeRows({ add, what, most, makeRow, changed }) {
  const rows = [];
  const list = h("div", { class: "rows" });
  const more = button(add, { name: "plus", press: () => append({}).input.focus() });
  let made = 0;

  function append(given) {
    made += 1;
    const row = makeRow(given, made);
    const away = button("Take away", { name: "stop", kind: "quiet take-away", press: () => remove(row, frame) });
    away.setAttribute("aria-label", `Take away this ${what}`);
    const frame = h("div", { class: "row", role: "group", "aria-label": what }, row.element, away);
    rows.push(row);
    list.append(frame);
    settle();
    return row;
  }

  function remove(row, frame) {
    rows.splice(rows.indexOf(row), 1);
    frame.remove();
    settle();
    more.focus();
  }

  function settle() {
    more.hidden = rows.length >= most;
    changed();
  }

  return { element: h("div", { class: "rows-and-more" }, list, more), rows, append };
}
