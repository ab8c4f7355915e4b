// The page: its head, its addresses, its keys. Everything else is a view that lives until the next one comes.

import { Problem, get, key, reach } from "./api.js";
import { attribute, button, h, icon, put, text } from "./dom.js";
import { rate } from "./format.js";
import { jobView } from "./job.js";
import { jobsView } from "./jobs.js";
import { askForKey, signOutButton } from "./keys.js";
import { farmView } from "./panel.js";
import { farm, pulse, startPulse } from "./pulse.js";
import { submitView } from "./submit.js";

const NAME = "Diffusion Farm";
const THEMES = ["", "light", "dark"]; // "": as the system has it

const main = document.getElementById("main");
const notice = document.getElementById("notice");
const ROUTES = [
  [/^#?\/?$/, () => ["jobs", jobsView, {}]],
  [/^#\/new$/, () => ["new", submitView, {}]],
  [/^#\/farm$/, () => ["farm", farmView, {}]],
  [
    /^#\/jobs\/([\w-]+)(?:\/(\d+))?$/,
    ([, id, index]) => [`jobs/${id}`, jobView, { id, index: index ? Number(index) : null }],
  ],
];

let session = new AbortController(); // ends when somebody signs in or out
let view = { name: null, end: new AbortController(), handle: null };

function route() {
  if (session.signal.aborted) return; // nobody is let in
  const [name, make, args] = destination();
  if (view.name !== name) {
    view.end.abort();
    const end = new AbortController();
    view = { name, end, handle: null };
    main.replaceChildren();
    main.dataset.view = name.split("/")[0];
    scrollTo(0, 0);
    title("");
    view.handle = make(main, { ...args, title, signal: end.signal });
    for (const link of document.querySelectorAll("#top nav a")) {
      attribute(link, "aria-current", link.getAttribute("href") === (location.hash || "#/") ? "page" : null);
    }
  }
  view.handle?.open?.(args.index);
}

function destination() {
  for (const [form, to] of ROUTES) {
    const match = form.exec(location.hash);
    if (match) return to(match);
  }
  return ["none", noneView, {}];
}

function noneView(root) {
  const words = h("p", { class: "lead" }, "There is nothing at this address.");
  put(root, h("div", { class: "empty" }, words, h("a", { class: "button", href: "#/" }, "All jobs")));
}

function title(words) {
  const wanted = words ? `${words} · ${NAME}` : NAME;
  if (document.title !== wanted) document.title = wanted;
}

// -- the head

const pace = h("a", { href: "#/farm", class: "pace-now", hidden: true });
const tenant = h("span", { class: "tenant" });
const account = h("span", { class: "account" });
const look = h(
  "button",
  { type: "button", class: "button quiet", on: { click: turnTheme } },
  icon("half"),
  h("span", { class: "unseen" }),
);

function makeHead() {
  const logo = h("i", { class: "logo", "aria-hidden": "true" }, h("i"), h("i"), h("i"), h("i"));
  put(
    document.getElementById("top"),
    h("a", { class: "home-link", href: "#/" }, logo, NAME),
    h("nav", { "aria-label": "Views" }, h("a", { href: "#/" }, "Jobs"), h("a", { href: "#/farm" }, "Farm")),
    h("span", { class: "gap" }),
    pace,
    tenant,
    account,
    look,
    h(
      "a",
      { class: "button primary needs-submit", href: "#/new", "aria-keyshortcuts": "n" },
      icon("plus"),
      h("span", {}, "New job"),
      h("kbd", { "aria-hidden": "true" }, "n"),
    ),
  );
  showTheme();
}

function turnTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try {
    if (next) localStorage.setItem("farm.theme", next);
    else localStorage.removeItem("farm.theme");
  } catch {
    // Not kept: the next visit is as the system has it.
  }
  showTheme();
}

function showTheme() {
  const words = `Colours: ${document.documentElement.dataset.theme ?? "as the system has them"}`;
  text(look.lastChild, words);
  attribute(look, "title", words);
}

pulse.addEventListener("beat", () => {
  const { value, unit } = rate(farm.throughput.total["1m"].images_per_s);
  text(pace, `${value} ${unit}`);
  pace.hidden = !farm.throughput.total["1m"].images;
});

// -- the API away, or locked

reach.addEventListener("away", ({ detail: problem }) => {
  const retry = button("Try now", { kind: "quiet", press: () => reach.dispatchEvent(new Event("back")) });
  if (notice.dataset.tells === problem.title) return;
  notice.dataset.tells = problem.title;
  const words = `${problem.message}. Trying again; what is being rendered goes on.`;
  put(notice, h("b", {}, problem.title), h("span", {}, words), retry);
});
reach.addEventListener("back", () => {
  delete notice.dataset.tells;
  notice.replaceChildren();
});
reach.addEventListener("locked", () => {
  session.abort();
  view.end.abort();
  askForKey(start);
});

/** Begin anew: with a key, without one, or with another. */
async function start() {
  session.abort();
  session = new AbortController();
  const { signal } = session;
  view.end.abort();
  view.name = null;
  main.replaceChildren();
  put(account, key() && signOutButton(start));
  try {
    const caller = await get("v1/whoami", signal);
    document.documentElement.dataset.may = caller.scopes.join(" ");
    text(tenant, caller.auth === "keys" ? caller.tenant : "");
  } catch (error) {
    if (signal.aborted || error.status === 401) return; // who signs in begins anew
  }
  startPulse(signal);
  route();
}

// What no view has caught. A problem was told already; it is no fault of the page's.
addEventListener("unhandledrejection", (event) => {
  const { reason } = event;
  if (reason instanceof Problem || reason?.name === "AbortError") event.preventDefault();
});

// -- the keyboard

addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && isTyping?.type === "search") isTyping.blur();
  if (isTyping) return;
  if (event.key === "n") {
    event.preventDefault();
    location.hash = "#/new";
  } else if (event.key === "/") {
    event.preventDefault();
    if (view.name === "jobs") view.handle.focusSearch();
    else location.hash = "#/";
  } else if (event.key === "Escape" && view.name !== "jobs") {
    location.hash = "#/";
  }
});

document.getElementById("skip").addEventListener("click", () => main.focus());
addEventListener("hashchange", route);
makeHead();
start();
