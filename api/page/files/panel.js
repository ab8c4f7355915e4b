// The farm itself: how fast it runs, what waits, and who is at work. A column beside the jobs, or a view of its own.

import { chart } from "./chart.js";
import { attribute, h, keyed, put, text, vars } from "./dom.js";
import { NONE, bytes, count, counted, duration, number, rate, short, since } from "./format.js";
import { farm, history, mostLikelyFirst, pulse } from "./pulse.js";

const SPAN_S = 15;
const SPANS = 60;
const EXTRAS = { joules_per_image: "joules an image", price_per_1000_images: "price of 1,000" };

/** Make the column; it keeps itself fresh until `signal` is aborted. */
export function farmPanel(signal) {
  const now = figures();
  const graph = chart({ unit: "images/s" });
  const workers = workerList({ isShort: true });
  const panel = h(
    "aside",
    { class: "farm-panel", "aria-label": "The farm now" },
    h("h2", {}, "The farm now"),
    now,
    graph,
    h("h2", {}, h("a", { href: "#/farm" }, "Workers")),
    workers,
  );
  keepFresh(signal, () => {
    now.show();
    graph.show(...throughputHistory());
    workers.show();
  });
  return panel;
}

/** Show the farm in `root`. */
export function farmView(root, { title, signal }) {
  const now = figures();
  const graph = chart({ unit: "images/s" });
  const workers = workerList({ isShort: false });
  const windows = windowTable();
  const models = h("div", { class: "models" });
  put(
    root,
    h("div", { class: "tools" }, h("h1", {}, "The farm")),
    h(
      "div",
      { class: "farm" },
      h("section", { "aria-label": "Throughput" }, now, graph, windows),
      h("section", {}, h("h2", {}, "Workers"), workers),
      h("section", {}, h("h2", {}, "Models"), models),
    ),
  );
  keepFresh(signal, () => {
    now.show();
    graph.show(...throughputHistory());
    windows.show();
    workers.show();
    showModels(models);
    const { value, unit } = rate(farm.throughput.total["1m"].images_per_s);
    title(`${value} ${unit}`);
  });
}

function keepFresh(signal, show) {
  const showIfKnown = () => farm.throughput && show();
  pulse.addEventListener("beat", showIfKnown, { signal });
  pulse.addEventListener("models", showIfKnown, { signal });
  showIfKnown();
}

function throughputHistory() {
  return [history(SPANS, SPAN_S), SPAN_S];
}

function figures() {
  const pace = h("b");
  const unit = h("span", { class: "unit" });
  const rows = ["waiting", "rendering", "GPU s an image", "seats taken"].map((name) => [h("dd"), h("dt", {}, name)]);
  const box = h(
    "div",
    { class: "figures" },
    h("p", { class: "pace" }, pace, " ", unit, h("span", { class: "unseen" }, " over the last minute")),
    h("dl", { class: "numbers" }, rows.map(([value, name]) => h("div", {}, name, value))),
  );
  box.show = () => {
    const { total, queued_images, rendering_images } = farm.throughput;
    const minute = total["1m"];
    const told = rate(minute.images_per_s);
    text(pace, told.value);
    text(unit, told.unit);
    const recent = minute.images ? minute : total["5m"];
    const each = [number(recent.gpu_s_per_image), number(recent.mean_seat_occupancy, 2)];
    const values = [short(queued_images), short(rendering_images), ...each];
    rows.forEach(([value], i) => text(value, values[i]));
  };
  return box;
}

function windowTable() {
  const columns = ["", "last minute", "5 minutes", "hour", "GPU s an image", "seats taken", ...Object.values(EXTRAS)];
  const heads = columns.map((name) => h("th", { scope: "col" }, name));
  const body = h("tbody");
  const table = h(
    "div",
    { class: "wide", tabIndex: 0, role: "region", "aria-label": "Rates" },
    h(
      "table",
      {},
      h("caption", { class: "unseen" }, "Rates of the farm, its models and its workers"),
      h("thead", {}, h("tr", {}, heads)),
      body,
    ),
  );
  table.show = () => {
    const { total, by_model, by_worker } = farm.throughput;
    const lines = [["all", total], ...Object.entries(by_model), ...Object.entries(by_worker)];
    // What no card measures, and what has no price, has no column.
    const extras = Object.keys(EXTRAS).filter((name) => lines.some(([, windows]) => windows["1h"][name] !== null));
    Object.keys(EXTRAS).forEach((name, i) => {
      heads.at(i - Object.keys(EXTRAS).length).hidden = !extras.includes(name);
    });
    put(
      body,
      lines.map(([name, windows]) =>
        h(
          "tr",
          {},
          h("th", { scope: "row" }, name),
          ["1m", "5m", "1h"].map((window) => h("td", {}, tell(windows[window].images_per_s))),
          h("td", {}, number(windows["5m"].gpu_s_per_image)),
          h("td", {}, number(windows["5m"].mean_seat_occupancy, 2)),
          extras.map((name) => h("td", {}, number(windows["1h"][name]))),
        ),
      ),
    );
  };
  return table;
}

function tell(perSecond) {
  const { value, unit } = rate(perSecond);
  return perSecond ? `${value} ${unit.replace("images", "")}` : NONE;
}

// -- workers

function workerList({ isShort }) {
  const none = h(
    "div",
    { class: "empty" },
    h("p", {}, "No worker has reported. Jobs are accepted, and wait."),
    h("pre", { tabIndex: 0 }, "farm worker"),
  );
  const list = h("ul", { class: isShort ? "workers short" : "workers", role: "list" });
  const box = h("div", {}, none, list);
  box.show = () => {
    none.hidden = farm.workers.length > 0;
    keyed(list, farm.workers, (worker) => worker.name, makeWorker, (item, worker) => item.show(worker));
  };
  return box;
}

function makeWorker() {
  const name = h("b");
  const device = h("span", { class: "faint" });
  const seats = h("span", { class: "seats" });
  const holds = h("p", { class: "holds" });
  const gauges = h("dl", { class: "gauges" });
  const fine = h("p", { class: "fine" });
  const item = h("li", { class: "worker" }, h("p", { class: "who" }, name, " ", device), seats, holds, gauges, fine);
  item.show = (worker) => {
    text(name, worker.node);
    text(device, worker.gpu?.name ?? worker.device);
    showSeats(seats, worker);
    const own = farm.throughput.by_worker[worker.node]?.["1m"];
    const pace = own ? rate(own.images_per_s) : null;
    const loaded = worker.resident.join(", ") || "no model loaded yet";
    text(holds, pace ? `${loaded} · ${pace.value} ${pace.unit}` : loaded);
    keyed(gauges, gaugesOf(worker), (gauge) => gauge.name, makeGauge, (node, gauge) => node.show(gauge));
    text(fine, finePrint(worker));
  };
  return item;
}

/** Seats as a theatre shows them: one square each, lit where somebody sits. */
function showSeats(place, worker) {
  const seats = Math.max(worker.seats ?? worker.max_batch, worker.running);
  if (place.childElementCount !== seats) put(place, Array.from({ length: seats }, () => h("i", { class: "seat" })));
  [...place.children].forEach((seat, i) => seat.classList.toggle("is-taken", i < worker.running));
  attribute(place, "role", "img");
  attribute(place, "aria-label", `${worker.running} of ${seats} seats taken`);
}

/** What a card tells of itself; what it does not is left out. */
function gaugesOf({ gpu }) {
  if (!gpu) return [];
  const { utilisation, memory_used_bytes: used, memory_total_bytes: all, temperature_c, power_w } = gpu;
  const known = (value, words) => ((value ?? null) === null ? null : words());
  return [
    { name: "busy", share: utilisation, words: known(utilisation, () => `${Math.round(utilisation * 100)} %`) },
    { name: "memory", share: used / all, words: known(all, () => `${bytes(used)} of ${bytes(all)}`) },
    {
      name: "temperature",
      share: temperature_c / 100,
      words: known(temperature_c, () => `${Math.round(temperature_c)} °C`),
    },
    { name: "power", share: null, words: known(power_w, () => `${Math.round(power_w)} W`) },
  ].filter((gauge) => gauge.words);
}

function makeGauge({ name }) {
  const words = h("dd");
  const level = h("i", { class: "level", "aria-hidden": "true" });
  const node = h("div", { class: "gauge" }, h("dt", {}, name), words, level);
  node.show = (gauge) => {
    text(words, gauge.words);
    level.hidden = gauge.share === null;
    vars(level, { share: Math.min(1, gauge.share ?? 0) });
  };
  return node;
}

function finePrint(worker) {
  const told = [
    counted(worker.images, "image"),
    worker.mean_seat_occupancy && `${number(worker.mean_seat_occupancy, 2)} seats a step`,
    worker.failures && `${count(worker.failures)} failed`,
    worker.oom_count && `${count(worker.oom_count)}× out of memory`,
    worker.waiting && `${count(worker.waiting)} waiting`,
    worker.undelivered && `${count(worker.undelivered)} to be stored`,
    worker.loads && `${counted(worker.loads, "model load")} (${duration(worker.loading_s)})`,
    `since ${since(worker.started_at)}`,
  ];
  return told.filter(Boolean).join(" · ");
}

// -- models

function showModels(place) {
  keyed(
    place,
    mostLikelyFirst(farm.models),
    (model) => model.id,
    (model) =>
      h("article", { class: "model" }, h("h3", {}, model.id), h("p", {}, model.description), h("p", { class: "fine" })),
    (node, model) => {
      node.classList.toggle("is-away", !model.available);
      const served = model.available
        ? `${counted(model.num_workers, "worker")}, on ${model.num_workers_resident} now`
        : "nobody serves it";
      const { defaults } = model;
      const size = `${defaults.width} × ${defaults.height}`;
      const steps = counted(defaults.num_inference_steps, "step");
      text(node.lastChild, [model.family, size, steps, served].join(" · "));
    },
  );
}
