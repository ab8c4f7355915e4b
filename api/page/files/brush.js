// A brush over a picture: what it covers is the mask. By mouse, pen or finger; a mask from a file does without it.

import { attribute, button, h, vars } from "./dom.js";

const LONGEST_PX = 1024; // the farm needs an eighth of the image's size
const DOT_PX = 0.01;
const COLOUR = "#ff5a1f"; // seen on any picture; the style makes it see-through

/**
 * Open it over the picture at `url`; resolves to `{mask, strokes}`, the mask as a PNG in the picture's shape (null when
 * nothing is painted), or to null when it is left without. `strokes` are those to go on from.
 */
export function paintMask({ url, strokes: before = [], signal }) {
  const strokes = [...before];
  const picture = h("img", { class: "brush-picture", src: url, alt: "The picture to paint on" });
  const canvas = h("canvas", { class: "brush-canvas" });
  const tip = h("i", { class: "brush-tip", "aria-hidden": "true" });
  const stage = h("div", { class: "brush-stage" }, picture, canvas, tip);
  const size = h("input", { type: "range", id: "brush-size", min: 1, max: 40, value: 10, on: { input: showTip } });
  const eraser = button("Eraser", { press: () => showState((isErasing = !isErasing)) });
  const undo = button("Undo", { name: "retry", shortcut: "Ctrl Z", press: () => strokes.pop() && redraw() });
  const clear = button("Clear", { press: () => strokes.splice(0) && redraw() });
  const done = button("Use this mask", { kind: "primary", press: () => finish() });
  const leave = button("Cancel", { press: () => dialog.close() });
  let isErasing = false;
  let stroke = null; // the one under way
  let settle = null;

  const dialog = h(
    "dialog",
    { class: "brush", "aria-labelledby": "brush-title", on: { close: end, keydown: onKey } },
    h("h2", { id: "brush-title" }, "Paint what is to be made anew"),
    stage,
    h(
      "div",
      { class: "actions" },
      h("label", { class: "brush-size", htmlFor: "brush-size" }, "Brush ", size),
      eraser,
      undo,
      clear,
      h("span", { class: "gap" }),
      leave,
      done,
    ),
  );

  picture.addEventListener("load", () => {
    const { naturalWidth: width, naturalHeight: height } = picture;
    const scale = Math.min(1, LONGEST_PX / Math.max(width, height));
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    vars(stage, { ratio: width / height });
    showTip();
    redraw();
  });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    canvas.setPointerCapture(event.pointerId);
    stroke = { pointer: event.pointerId, width: width(), isErasing, points: [] };
    strokes.push(stroke);
    draw(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const { left, top } = stage.getBoundingClientRect();
    vars(tip, { x: `${event.clientX - left}px`, y: `${event.clientY - top}px` });
    if (event.pointerId === stroke?.pointer) draw(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => {
      if (event.pointerId !== stroke?.pointer) return;
      stroke = null;
      showState();
    });
  }

  const width = () => (Number(size.value) / 100) * Math.max(canvas.width, canvas.height);

  function showTip() {
    vars(tip, { size: `${(Number(size.value) / 100) * Math.max(stage.clientWidth, stage.clientHeight)}px` });
  }

  /** Go on with the stroke to where the pointer is, by way of where it has been. */
  function draw(event) {
    const { left, top, width: across } = canvas.getBoundingClientRect();
    const scale = canvas.width / across;
    const steps = event.getCoalescedEvents?.() ?? [];
    for (const { clientX, clientY } of steps.length ? steps : [event]) {
      stroke.points.push([(clientX - left) * scale, (clientY - top) * scale]);
    }
    trace(canvas.getContext("2d"), { ...stroke, points: stroke.points.slice(-steps.length - 2) }, COLOUR);
  }

  function redraw() {
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const each of strokes) trace(context, each, COLOUR);
    showState();
  }

  function showState() {
    attribute(eraser, "aria-pressed", String(isErasing));
    undo.disabled = clear.disabled = !strokes.length;
  }

  async function finish() {
    const isEmpty = strokes.every((each) => each.isErasing);
    const mask = isEmpty ? null : await drawMask(canvas, strokes);
    settle({ mask, strokes: isEmpty ? [] : strokes });
    dialog.close();
  }

  function onKey(event) {
    if (event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey) || undo.disabled) return;
    event.preventDefault();
    undo.click();
  }

  function end() {
    settle(null); // says nothing where a mask was handed over
    dialog.remove();
  }

  signal.addEventListener("abort", () => dialog.close(), { once: true });
  document.body.append(dialog);
  showState();
  dialog.showModal();
  return new Promise((resolve) => {
    settle = resolve;
  });
}

/** Return the mask as a PNG: white where it was painted, black elsewhere. */
function drawMask({ width, height }, strokes) {
  const sheet = h("canvas", { width, height });
  const context = sheet.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  for (const each of strokes) trace(context, { ...each, isErasing: false }, each.isErasing ? "#000" : "#fff");
  return new Promise((resolve) => {
    sheet.toBlob(resolve, "image/png");
  });
}

function trace(context, { points, width, isErasing }, colour) {
  context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  const [[x, y], ...others] = points;
  context.moveTo(x, y);
  context.lineTo(x + DOT_PX, y); // a line of no length at all is not drawn
  for (const point of others) context.lineTo(...point);
  context.stroke();
}
