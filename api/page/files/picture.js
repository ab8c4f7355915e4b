// A field for a picture: chosen, dropped or pasted, sent to the farm at once, shown small, taken away again.

import { Problem, send } from "./api.js";
import { attribute, button, h, say, text } from "./dom.js";
import { makeField } from "./fields.js";
import { bytes } from "./format.js";
import { pictureAt, rememberPicture } from "./pictures.js";

const TYPES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", webp: "image/webp", avif: "image/avif" };
const NO_PICTURE = "This is no PNG, JPEG, WebP or AVIF.";

const slots = new WeakMap(); // by element: who takes what is dropped there

/** The picture field that something lies in, or null. */
export const pictureFieldOf = (element) => slots.get(element.closest?.(".field-picture")) ?? null;

/**
 * Make one. `changed()` is called when another picture is there, or none; `tools` are buttons that stand with it.
 * `.key` is what a job names, `.shown` what is known of it: `{url, width, height, name}`, or null.
 */
export function makePicture({ name, label, hint, changed, signal, tools = [] }) {
  const input = h("input", { type: "file", accept: [...new Set(Object.values(TYPES))].join(",") });
  const thumb = h("img", { class: "thumb", alt: "", decoding: "async", hidden: true });
  const words = h("p", { class: "picture-words", hidden: true });
  const away = button("Take away", { name: "stop", kind: "quiet", press: () => take("") });
  const actions = h("div", { class: "actions" }, tools, away);
  const box = h("div", { class: "picture-box" }, thumb, h("div", {}, words, input, actions));
  const field = makeField(name, label, input, hint, box);
  field.element.classList.add("field-picture");
  let key = "";
  let shown = null;
  let sending = null; // the latest upload; an earlier one has no say any more
  let isFailed = false;

  input.addEventListener("change", () => input.files.length && upload(input.files[0]));
  thumb.addEventListener("error", () => {
    thumb.hidden = true;
  });
  attribute(away, "aria-label", `Take away: ${label}`);

  /** Send a file to the farm, and have it here. */
  async function upload(file) {
    const [, kind] = file.type.split("/"); // none where the system knows none of this name
    const type = TYPES[(kind ?? file.name.split(".").pop()).toLowerCase()];
    if (!type) return fail(NO_PICTURE);
    const mine = sendPicture(file, type, signal);
    sending = mine;
    field.blame(null);
    isFailed = false;
    tell("is being sent …");
    try {
      const kept = await mine;
      if (sending === mine) take(kept.key);
    } catch (error) {
      if (signal.aborted) return null;
      if (!(error instanceof Problem)) throw error;
      if (sending === mine) fail(told(error));
    } finally {
      if (sending === mine) sending = null;
    }
    return key;
  }

  function fail(message) {
    sending = null;
    isFailed = true;
    show("", null);
    field.blame(message);
    changed();
    return null;
  }

  /** Have the picture of a key; "" for none. */
  function take(wanted) {
    sending = null;
    isFailed = false;
    field.blame(null);
    show(wanted, null);
    if (wanted) pictureAt(wanted, signal).then((found) => wanted === key && found && show(key, found));
    changed();
    if (!wanted) input.focus();
  }

  function show(of, found) {
    [key, shown] = [of, found];
    if (!key) input.value = "";
    input.hidden = Boolean(key);
    away.hidden = !key && !isFailed;
    thumb.hidden = !found?.url;
    if (found?.url) thumb.src = found.url;
    const size = found?.width ? `${found.width} × ${found.height}` : null;
    tell(key && [found?.name ?? key, size, found?.bytes && bytes(found.bytes)].filter(Boolean).join(" · "));
    if (found) changed();
  }

  function tell(sentence) {
    text(words, sentence);
    words.hidden = !sentence;
    if (sentence) say(`${label}: ${sentence}`);
  }

  const own = {
    ...field,
    upload,
    take,
    /** What stands against sending the job; null when nothing does. */
    get obstacle() {
      return isFailed ? "Choose another picture, or take this one away." : null;
    },
    get key() {
      return key;
    },
    get shown() {
      return shown;
    },
    /** Resolves when nothing is being sent. */
    settled: () => Promise.resolve(sending).catch(() => {}),
  };
  slots.set(field.element, own);
  show("", null);
  return own;
}

function told({ errors: [error], message }) {
  return error?.choices?.length ? `${error.message} (${error.choices.join(", ")})` : (error?.message ?? message);
}

async function sendPicture(file, type, signal) {
  const answer = await send("POST", "v1/uploads", { body: file, signal, headers: { "Content-Type": type } });
  const { key, url, width, height, bytes: size } = await answer.json();
  rememberPicture(key, { url, width, height, bytes: size, name: file.name }, file);
  return { key };
}
