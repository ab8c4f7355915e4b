// A job's images as a contact sheet. However many there are, only those in sight are asked for and drawn.

import { get } from "./api.js";
import { makeCell } from "./cell.js";
import { attribute, h, put, text } from "./dom.js";
import { count } from "./format.js";
import { smallest, stillGood } from "./peek.js";

const PAGE = 100; // images of one question
const CHAPTER = 100_000; // images on one sheet: browsers end at some ten million pixels of height
const CAPTION_PX = 22;
const PROMPT_PX = 18; // the line of a job with more than one
const GAP_PX = 14;
const OVERSCAN_ROWS = 2;
const AGAIN_MS = 900; // at the soonest, the same page
const SIZES = { small: 92, medium: 148, large: 232 };
const SIZE_KEY = "farm.gallery";

/** Make a gallery of a job; `signal` ends it. */
export class Gallery {
  constructor(job, signal) {
    this.job = job;
    this.signal = signal;
    this.images = new Map(); // by index, of the pages that were asked for
    this.pages = new Map(); // by number: {at, isBusy, isStale}
    this.cells = new Map(); // by index, in sight
    this.previews = new Map(); // by index: {step, steps, url}
    this.first = 0; // of the chapter
    this.current = 0; // where the keyboard is
    this.size = SIZES[saved()] ? saved() : "medium";
    this.sheet = h("div", {
      class: "sheet",
      role: "list",
      "aria-label": `Images of this job`,
      on: { keydown: (event) => this.#onKey(event), focusin: (event) => this.#onFocus(event) },
    });
    this.sheet.addEventListener("error", (event) => this.#onBroken(event), { capture: true, signal });
    this.notice = h("p", { class: "notice-inline", hidden: true });
    this.element = h("div", { class: "gallery" }, this.#tools(), this.notice, this.sheet);
    const soon = () => this.#soon();
    addEventListener("scroll", soon, { signal, passive: true });
    addEventListener("resize", soon, { signal });
    new ResizeObserver(soon).observe(this.element);
  }

  // -- what others tell

  /** Take the job as it stands now. */
  update(job) {
    this.job = job;
    this.#soon();
  }

  /** An image has changed. */
  take(image) {
    const page = this.pages.get(Math.floor(image.index / PAGE));
    if (!page) return; // not asked for, so not in sight
    this.#learn(image);
    this.#soon();
  }

  /** How far an image in a seat is, with a picture of it if that is new. */
  preview({ index, step, steps, url }) {
    const image = this.images.get(index);
    if (image?.state === "queued") image.state = "rendering";
    this.previews.set(index, { step, steps, url: url ?? this.previews.get(index)?.url });
    const cell = this.cells.get(index);
    if (cell) this.#fill(cell, index);
  }

  /** Nobody tells of single images: what is in sight and not settled is asked for again. */
  lookAgain() {
    for (const number of this.#pagesInSight()) {
      const page = this.pages.get(number);
      if (page && !this.#isSettled(number)) page.isStale = true;
    }
    this.#soon();
  }

  /** What is known of an image; undefined when it was not asked for. */
  known(index) {
    return this.images.get(index);
  }

  // -- what is in sight

  #tools() {
    const sizes = Object.keys(SIZES).map((name) =>
      h(
        "button",
        {
          type: "button",
          class: "segment",
          "aria-pressed": String(name === this.size),
          on: { click: () => this.#resize(name, sizes) },
        },
        name,
      ),
    );
    this.jump = h("input", {
      type: "number",
      min: 0,
      max: this.job.total - 1,
      inputmode: "numeric",
      placeholder: "image no.",
      "aria-label": "Go to image number",
    });
    const form = h("form", { class: "jump", on: { submit: (event) => this.#onJump(event) } }, this.jump);
    const turn = () => this.#turnTo(Number(this.chapters.value));
    this.chapters = h("select", { "aria-label": "Which images", on: { change: turn } });
    const numChapters = Math.ceil(this.job.total / CHAPTER);
    put(
      this.chapters,
      Array.from({ length: numChapters }, (_, i) => {
        const last = Math.min(this.job.total, (i + 1) * CHAPTER) - 1;
        return h("option", { value: i * CHAPTER }, `${count(i * CHAPTER)} to ${count(last)}`);
      }),
    );
    return h(
      "div",
      { class: "gallery-tools" },
      h("div", { class: "segments", role: "group", "aria-label": "Size of pictures" }, sizes),
      numChapters > 1 && this.chapters,
      this.job.total > 24 && form,
    );
  }

  #resize(name, buttons) {
    this.size = name;
    for (const each of buttons) attribute(each, "aria-pressed", String(each.textContent === name));
    try {
      localStorage.setItem(SIZE_KEY, name);
    } catch {
      // Not kept: the next visit starts with the usual size.
    }
    this.#forgetCells();
    this.#soon();
  }

  #onJump(event) {
    event.preventDefault();
    const index = Number(this.jump.value);
    if (this.jump.value !== "" && Number.isInteger(index) && index >= 0 && index < this.job.total) this.goTo(index);
  }

  #turnTo(first) {
    this.first = first;
    this.chapters.value = String(first);
    this.current = first;
    this.#forgetCells();
    this.#soon();
  }

  /** Bring an image into sight, and the keyboard to it. */
  goTo(index, { focus = true } = {}) {
    const chapter = Math.floor(index / CHAPTER) * CHAPTER;
    if (chapter !== this.first) this.#turnTo(chapter);
    this.current = index;
    const { columns, row } = this.#measure();
    const top = this.sheet.getBoundingClientRect().top + scrollY + Math.floor((index - this.first) / columns) * row;
    const isInSight = top > scrollY + 60 && top + row < scrollY + innerHeight;
    if (!isInSight) scrollTo({ top: Math.max(0, top - innerHeight / 3), behavior: "instant" });
    this.#draw();
    if (focus) this.cells.get(index)?.firstChild.focus({ preventScroll: true });
  }

  get tellsPrompts() {
    return this.job.num_prompts > 1 && this.size !== "small";
  }

  get #length() {
    return Math.min(CHAPTER, this.job.total - this.first);
  }

  #measure() {
    const width = this.sheet.clientWidth || 1;
    const columns = Math.max(2, Math.floor((width + GAP_PX) / (SIZES[this.size] + GAP_PX)));
    const cell = (width - GAP_PX * (columns - 1)) / columns;
    return { columns, cell, row: cell + CAPTION_PX + (this.tellsPrompts ? PROMPT_PX : 0) + GAP_PX };
  }

  #window() {
    const { columns, cell, row } = this.#measure();
    const above = -this.sheet.getBoundingClientRect().top;
    const firstRow = Math.max(0, Math.floor(above / row) - OVERSCAN_ROWS);
    const lastRow = Math.ceil((above + innerHeight) / row) + OVERSCAN_ROWS;
    const from = this.first + Math.min(this.#length, firstRow * columns);
    const to = this.first + Math.min(this.#length, Math.max(0, lastRow) * columns);
    return { columns, cell, row, from, to };
  }

  #pagesInSight() {
    const { from, to } = this.#window();
    if (to <= from) return [];
    const [first, last] = [Math.floor(from / PAGE), Math.floor((to - 1) / PAGE)];
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  }

  #soon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      if (!this.signal.aborted && this.element.isConnected) this.#draw();
    });
  }

  #forgetCells() {
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
  }

  #draw() {
    const { columns, cell, row, from, to } = this.#window();
    const rows = Math.ceil(this.#length / columns);
    this.sheet.style.height = `${Math.max(0, rows * row - GAP_PX)}px`;
    for (const [index, node] of this.cells) {
      if (index < from || index >= to) {
        if (node.contains(document.activeElement)) continue; // the keyboard stays where it is
        node.remove();
        this.cells.delete(index);
      }
    }
    if (this.current < from || this.current >= to) this.current = Math.min(from, this.first + this.#length - 1);
    for (let index = from; index < to; index++) {
      let node = this.cells.get(index);
      if (!node) {
        node = makeCell(this.job.id, index, this.job.total);
        this.cells.set(index, node);
        // In the order of their numbers, for readers that follow the document.
        const next = this.cells.get(index + 1);
        this.sheet.insertBefore(node, next ?? null);
      }
      const at = index - this.first;
      const place = `translate(${(at % columns) * (cell + GAP_PX)}px, ${Math.floor(at / columns) * row}px)`;
      if (node.place !== place || node.cellWidth !== cell) {
        node.style.transform = place;
        node.style.width = `${cell}px`;
        [node.place, node.cellWidth] = [place, cell];
      }
      this.#fill(node, index);
    }
    for (const number of this.#pagesInSight()) this.#ask(number);
  }

  #fill(node, index) {
    const image = this.images.get(index);
    node.show(image, this.previews.get(index), this.tellsPrompts);
    node.firstChild.tabIndex = index === this.current ? 0 : -1;
  }

  // -- questions

  async #ask(number) {
    const page = this.pages.get(number) ?? { at: 0, isBusy: false, isStale: true };
    this.pages.set(number, page);
    const wait = page.at + AGAIN_MS - Date.now();
    if (page.isBusy || !page.isStale) return;
    if (wait > 0) {
      this.timer ??= setTimeout(() => {
        this.timer = null;
        this.#soon();
      }, wait);
      return;
    }
    Object.assign(page, { isBusy: true, isStale: false, at: Date.now() });
    try {
      const { data } = await get(`v1/jobs/${this.job.id}/images?offset=${number * PAGE}&limit=${PAGE}`, this.signal);
      for (const image of data) this.#learn(image);
    } catch {
      page.isStale = true; // the banner tells why; the next round asks again
    } finally {
      page.isBusy = false;
    }
    this.#soon();
  }

  #learn(image) {
    const before = this.images.get(image.index);
    const shown = stillGood(before?.shown) ?? smallest(image);
    this.images.set(image.index, { ...image, shown, isTriedAgain: before?.isTriedAgain });
    if (image.state !== "rendering") this.previews.delete(image.index);
  }

  #markStale(index) {
    const page = this.pages.get(Math.floor(index / PAGE));
    if (page) page.isStale = true;
    this.#soon();
  }

  /** A picture did not load: its link may have run out, or the store is out of this browser's reach. */
  #onBroken(event) {
    const index = Number(event.target.closest("[data-index]")?.dataset.index);
    const image = this.images.get(index);
    if (!image?.shown) return;
    if (!image.isTriedAgain) {
      Object.assign(image, { shown: null, isTriedAgain: true });
      this.#markStale(index);
      return;
    }
    const { origin } = new URL(image.shown);
    const remedy = "The farm's operator sets that address with FARM_S3_PUBLIC_ENDPOINT, or FARM_PUBLIC_URL.";
    const reason =
      origin === location.origin
        ? "Pictures do not come: the farm's store does not answer, or has lost them."
        : `Pictures lie at ${origin}, which this browser cannot reach. ${remedy}`;
    text(this.notice, reason);
    this.notice.hidden = false;
  }

  #isSettled(number) {
    const end = Math.min(this.job.total, (number + 1) * PAGE);
    for (let index = number * PAGE; index < end; index++) {
      const state = this.images.get(index)?.state;
      if (!state || state === "queued" || state === "rendering") return false;
    }
    return true;
  }

  // -- the keyboard

  #onFocus(event) {
    const cell = event.target.closest("[data-index]");
    if (cell) this.current = Number(cell.dataset.index);
  }

  #onKey(event) {
    const { columns } = this.#measure();
    const screen = columns * Math.max(1, Math.floor(innerHeight / this.#measure().row) - 1);
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      PageUp: -screen,
      PageDown: screen,
      Home: -Infinity,
      End: Infinity,
    };
    const by = steps[event.key];
    if (by === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const last = this.first + this.#length - 1;
    this.goTo(Math.max(this.first, Math.min(last, this.current + by)));
    for (const [index, node] of this.cells) node.firstChild.tabIndex = index === this.current ? 0 : -1;
  }
}

function saved() {
  try {
    return localStorage.getItem(SIZE_KEY);
  } catch {
    return null;
  }
}
