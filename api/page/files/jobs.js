// The jobs: a list that keeps itself fresh, filtered by state and by what is typed.

import { key } from "./api.js";
import { button, h, keyed, put, text } from "./dom.js";
import { count, counted, percent, since } from "./format.js";
import { JobPages } from "./job_pages.js";
import { follow, isFinal } from "./live.js";
import { inWords, outlook, pace, progressBar, stateMark } from "./progress.js";
import { isSmall, peek } from "./peek.js";
import { farm, pulse } from "./pulse.js";
import { farmPanel } from "./panel.js";

const AHEAD = "600px"; // rows that near are asked for before they are seen
const STATES = ["rendering", "queued", "paused", "done", "failed", "cancelled"];

/** Show the jobs in `root` until `signal` is aborted. */
export function jobsView(root, { title, signal }) {
  let pages = new JobPages("");
  let frame = null;
  let refresh = new AbortController();

  const search = h("input", {
    type: "search",
    id: "search",
    placeholder: "Filter by prompt, model, label",
    "aria-label": "Filter jobs",
    "aria-keyshortcuts": "/",
    on: { input: show },
  });
  const state = h(
    "select",
    { "aria-label": "State of jobs", on: { change: restart } },
    h("option", { value: "" }, "every state"),
    STATES.map((name) => h("option", { value: name }, name)),
  );
  const lists = h("div", { class: "job-lists" });
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) target.come();
  }, { rootMargin: AHEAD });
  const groups = [group("Under way", seen), group("Ended", seen)];
  const older = button("Older jobs", { kind: "quiet", press: () => loadOlder() });
  older.come = () => search.value || loadOlder(); // a search goes through what is there
  put(
    root,
    h(
      "div",
      { class: "home" },
      h(
        "section",
        { class: "jobs", "aria-label": "Jobs" },
        h("div", { class: "tools" }, h("h1", {}, "Jobs"), h("div", { class: "filters" }, search, state)),
        lists,
      ),
      farmPanel(signal),
    ),
  );

  function restart() {
    refresh.abort();
    refresh = new AbortController();
    const both = AbortSignal.any([signal, refresh.signal]);
    const look = () => load(both);
    pages = new JobPages(state.value);
    follow({ path: "v1/events", look, hear: { sync: look, job: take }, ms: 2000 }, both).catch((error) => {
      if (!both.aborted) throw error;
    });
  }

  async function load(both) {
    const own = pages;
    await own.refresh(both);
    if (own === pages) show();
  }

  async function loadOlder() {
    if (older.disabled || !pages.hasMore) return;
    older.disabled = true;
    try {
      await pages.older(AbortSignal.any([signal, refresh.signal]));
    } finally {
      older.disabled = false;
    }
    show();
    seen.unobserve(older); // so that it is noticed if it is still in sight
    seen.observe(older);
  }

  /** One job has changed, or is new. */
  function take(job) {
    pages.change(job);
    soon();
  }

  function soon() {
    frame ??= requestAnimationFrame(show);
  }

  function show() {
    frame = null;
    const { jobs } = pages;
    if (jobs === null || signal.aborted) return;
    const found = jobs.filter((job) => matches(job, search.value, soon));
    const [active, ended] = [found.filter((job) => !isFinal(job)), found.filter(isFinal)];
    groups[0].show(active.sort(byUrgency), soon);
    groups[1].show(ended, soon);
    older.hidden = !pages.hasMore;
    const isFiltered = search.value !== "" || state.value !== "";
    const wanted = found.length ? "list" : isFiltered ? "none" : "empty";
    if (lists.dataset.shows !== wanted) {
      lists.dataset.shows = wanted;
      put(lists, { list: [...groups, older], none: [nothingFound(), older], empty: nothingYet() }[wanted]);
    }
    const counts = jobs.reduce((sum, job) => (isFinal(job) ? sum : sum + job.counts.rendering + job.counts.queued), 0);
    title(counts ? `${count(counts)} to go` : "");
  }

  signal.addEventListener("abort", () => {
    refresh.abort();
    seen.disconnect();
  });
  seen.observe(older);
  pulse.addEventListener("models", show, { signal });
  restart();
  return { focusSearch: () => search.focus() };
}

const UNSEEN = { prompt: null, covers: [] };
const URGENCY = { rendering: 0, queued: 1, paused: 2 };
const byUrgency = (a, b) => URGENCY[a.state] - URGENCY[b.state] || b.id.localeCompare(a.id);

function matches(job, wanted, again) {
  if (!wanted) return true;
  const told = [job.id, job.model, job.state, job.tenant, peek(job, again).prompt, ...Object.entries(job.labels).flat()];
  const all = told.join(" ").toLocaleLowerCase();
  return wanted.toLocaleLowerCase().split(/\s+/).every((word) => all.includes(word));
}

function group(name, seen) {
  const number = h("span", { class: "faint" });
  const list = h("ul", { class: "job-list", role: "list" });
  const section = h("section", { class: "group" }, h("h2", {}, name, " ", number), list);
  section.show = (jobs, again) => {
    section.hidden = !jobs.length;
    text(number, count(jobs.length));
    keyed(list, jobs, (job) => job.id, (job) => makeRow(job, seen), (row, job) => row.show(job, again));
  };
  return section;
}

function makeRow(job, seen) {
  const prompt = h("span", { class: "prompt" });
  const meta = h("span", { class: "meta" });
  const mark = stateMark();
  const bar = progressBar("Progress");
  const done = h("span", { class: "done" });
  const ahead = h("span", { class: "ahead" });
  const covers = h("span", { class: "covers", "aria-hidden": "true" });
  const row = h(
    "li",
    {},
    h(
      "a",
      { class: "job-row", href: `#/jobs/${job.id}` },
      covers,
      h("span", { class: "what" }, prompt, meta),
      h("span", { class: "how" }, h("span", { class: "line" }, mark, ahead), bar, h("span", { class: "line" }, done)),
    ),
  );
  let latest = null;
  row.come = () => {
    row.isNear = true;
    row.show(...latest);
  };
  row.show = (fresh, again) => {
    latest = [fresh, again];
    const known = row.isNear ? peek(fresh, again) : UNSEEN;
    text(prompt, known.prompt ?? fresh.id);
    text(meta, about(fresh));
    mark.show(fresh);
    bar.show(fresh);
    text(ahead, outlook(fresh));
    const whole = [counted(fresh.total, "image"), pace(fresh)].filter(Boolean).join(" · ");
    const part = `${inWords(fresh)} · ${percent(fresh.counts.stored, fresh.total)} %`;
    text(done, fresh.state === "done" ? whole : part);
    showCovers(covers, known.covers, fresh);
  };
  seen.observe(row);
  return row;
}

function about(job) {
  const more = job.num_prompts > 1 ? `and ${counted(job.num_prompts - 1, "more prompt")}` : null;
  const labels = Object.entries(job.labels).map(([name, value]) => (value ? `${name}: ${value}` : name));
  const tenant = job.tenant === "default" ? null : job.tenant;
  const priority = job.priority === "normal" ? null : job.priority;
  return [more, job.model, tenant, priority, ...labels, since(job.created_at)].filter(Boolean).join(" · ");
}

/** Show a first picture, and the others only if they are as light as that. */
function showCovers(place, covers, job) {
  const wanted = place.dataset.small ? covers : covers.slice(0, 1);
  keyed(
    place,
    wanted.length ? wanted : [{ index: -1 }],
    (cover) => cover.index,
    (cover) =>
      cover.index < 0
        ? h("span", { class: "cover blank" })
        : h("img", {
            class: "cover",
            src: cover.url,
            alt: "",
            loading: "lazy",
            decoding: "async",
            on: {
              load: ({ target }) => {
                if (place.dataset.small || !isSmall(target)) return;
                place.dataset.small = "yes";
                showCovers(place, peek(job).covers, job);
              },
              error: ({ target }) => target.classList.add("broken"),
            },
          }),
    () => {},
  );
}

function nothingFound() {
  return h("p", { class: "empty" }, "No job like that among those listed. Another word, or every state?");
}

function nothingYet() {
  const models = farm.models.filter((model) => model.available).map((model) => model.id);
  const model = models[0] ?? farm.models[0]?.id ?? "scenes";
  const shortcut = h("kbd", { "aria-hidden": "true" }, "n");
  const begin = h("a", { class: "button primary", href: "#/new" }, "Write the first job", shortcut);
  const command = [
    `curl ${new URL("v1/jobs", document.baseURI).href}`,
    ...(key() ? ['-H "Authorization: Bearer $FARM_API_KEY"'] : []),
    "-H 'Content-Type: application/json'",
    `-d '{"model": "${model}", "prompts": ["a red heart left of a green house at night"]}'`,
  ];
  return h(
    "div",
    { class: "empty" },
    h("p", { class: "lead" }, "Nothing has been asked of this farm yet."),
    h("p", {}, "Write a prompt a line, choose how many images of each, and watch them come."),
    h("p", { class: "needs-submit" }, begin),
    h("p", { class: "faint" }, "Or from a terminal:"),
    h("pre", { tabIndex: 0 }, command.join(" \\\n  ")),
  );
}
