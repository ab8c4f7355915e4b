// A small chart of what a span of time brought, span by span: bars, a scale, and a word for the one under the pointer.

import { h, put, svg, text } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 600;
const HEIGHT = 120;

/**
 * Make a chart of bars; `.show(values, span_s)` draws them, `{value, isMean}` with value null where nothing is known,
 * the newest last. Readers of the page get one sentence instead.
 */
export function chart({ unit }) {
  const bars = svg("g", { class: "bars" });
  const scale = h("span", { class: "scale" });
  const start = h("span");
  const under = h("span", { class: "under" });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "chart-picture" },
    svg("line", { class: "floor", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
    bars,
  );
  const figure = h(
    "figure",
    { class: "chart" },
    scale,
    picture,
    h("figcaption", { "aria-hidden": "true" }, start, under, h("span", {}, "now")),
  );
  let shown = { values: [], span_s: 1 };

  figure.show = (values, span_s) => {
    shown = { values, span_s };
    const known = values.map(({ value }) => value).filter((value) => value !== null);
    const top = ceiling(Math.max(0, ...known));
    const step = WIDTH / values.length;
    put(
      bars,
      values.map(({ value, isMean }, i) => {
        if (value === null) return null;
        const height = Math.max(value > 0 ? 2 : 0, (value / top) * (HEIGHT - 6));
        const place = { x: i * step + step * 0.14, width: step * 0.72, y: HEIGHT - height, height };
        return svg("rect", { ...place, "data-at": i, class: isMean ? "is-mean" : null });
      }),
    );
    text(scale, `${number(top)} ${unit}`);
    text(start, minutes(values.length * span_s));
    const mean = known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
    const span = `the last ${Math.round((known.length * span_s) / 60) || 1} min`;
    const told = `${unit} over ${span}: ${number(mean)} on average, ${number(Math.max(...known))} at most`;
    picture.setAttribute("aria-label", known.length ? told : "nothing measured yet");
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const { length } = shown.values;
    const at = Math.min(length - 1, Math.floor(((event.clientX - box.left) / box.width) * length));
    const { value = null, isMean } = shown.values[at] ?? {};
    const age = (length - 1 - at) * shown.span_s;
    const told = isMean ? "on average before this page was open" : age ? minutes(age) : "now";
    text(under, value === null ? "" : `${number(value, 2)} ${unit}, ${told}`);
    for (const bar of bars.children) bar.classList.toggle("is-under", Number(bar.dataset.at) === at);
  });
  picture.addEventListener("pointerleave", () => {
    text(under, "");
    for (const bar of bars.children) bar.classList.remove("is-under");
  });
  return figure;
}

function minutes(seconds) {
  return seconds < 60 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
}

/** The next round number above. */
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((factor) => factor * power).find((round) => round >= value);
}
