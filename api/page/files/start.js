// What an image starts from: a picture, how much of it stays, and a mask of what is made anew.

import { paintMask } from "./brush.js";
import { button, h, text } from "./dom.js";
import { numberField } from "./fields.js";
import { makeFold } from "./fold.js";
import { makePicture } from "./picture.js";

const NEARLY = 0.02; // shapes that differ by less are stretched by nothing that is seen

/**
 * Make this part of the form. `size()` tells `{width, height}` of what is rendered, `sizeLike(picture)` what has the
 * picture's shape, `resize(size)` has it rendered; `changed()` is called when something is.
 */
export function makeStart({ draft, changed, size, sizeLike, resize, signal }) {
  let strokes = { of: "", all: [] }; // what was painted, and over which picture
  const paint = button("Paint a mask", { name: "brush", press: openBrush });
  const picture = makePicture({
    name: "image",
    label: "Picture",
    hint: "choose one, drop it anywhere on the form, or paste it",
    changed: news,
    signal,
  });
  const mask = makePicture({
    name: "mask_image",
    label: "Mask",
    hint: "white is painted anew, black is kept; without one all of it is",
    changed: news,
    signal,
    tools: [paint],
  });
  const strength = numberField("strength", "Strength", "near 0 the picture stays, at 1 little of it is left", {
    min: 0,
    max: 1,
    step: "any",
    placeholder: "0.8",
  });
  const shape = h("span", {});
  const adopt = button("Size like it", { press: () => resize(sizeLike(picture.shown)) });
  const misfit = h("p", { class: "misfit", hidden: true }, shape, adopt);
  const fold = makeFold(
    ["Start from a picture", "img2img, inpainting"],
    h("div", { class: "start-fields" }, picture.element, mask.element, strength.element, misfit),
  );
  const fields = { image: picture, mask_image: mask, strength };

  async function openBrush() {
    const of = picture.key;
    const painted = await paintMask({
      url: picture.shown.url,
      strokes: strokes.of === of ? strokes.all : [],
      signal,
    });
    paint.focus();
    if (!painted) return;
    strokes = { of, all: painted.strokes };
    if (painted.mask) await mask.upload(new File([painted.mask], "painted here", { type: "image/png" }));
    else mask.take("");
  }

  function news() {
    draft.image = picture.key;
    draft.mask_image = mask.key;
    changed();
  }

  /** Whether a picture is stretched by nothing that is seen, or by as little as the model can. */
  function isLike(shown, { width, height }) {
    if (!width || Math.abs(Math.log((shown.width * height) / (shown.height * width))) < NEARLY) return true;
    const best = sizeLike(shown);
    return width === best.width && height === best.height;
  }

  function fit() {
    const hasAny = Boolean(picture.key || mask.key);
    strength.element.hidden = !hasAny;
    mask.element.hidden = !hasAny;
    paint.disabled = !picture.shown?.url;
    const { shown } = picture;
    misfit.hidden = !shown?.width || isLike(shown, size());
    if (!misfit.hidden) text(shape, `It will be stretched from ${inWords(shown)} to ${inWords(size())}.`);
    const given = strength.input.value && `strength ${strength.input.value}`;
    fold.note(hasAny ? [picture.shown?.name || "a picture", given, mask.key && "masked"].filter(Boolean).join(", ") : "");
  }

  const kept = [draft.image, draft.mask_image];
  return {
    element: fold.element,
    picture,
    pictures: () => [picture, mask],
    fields: () => Object.values(fields),
    fit,
    restore() {
      strength.input.value = draft.strength ?? "";
      if (kept[0]) picture.take(kept[0]);
      if (kept[1]) mask.take(kept[1]);
      fold.element.open = Boolean(kept[0] || kept[1]);
      fit();
    },
    keep: () => (draft.strength = strength.input.value),
    /** Add what it has to a job's body. */
    write(job) {
      if (picture.key) job.image = picture.key;
      if (mask.key) job.mask_image = mask.key;
      if (picture.key && strength.value !== null) job.strength = strength.value;
    },
    /** The field of an error's path, if it is here. */
    find: (name) => fields[name] ?? null,
  };
}

const inWords = ({ width, height }) => `${width} × ${height}`;
