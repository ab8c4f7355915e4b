// Elements from data. Text goes in as text: nothing in this page parses HTML, whoever wrote it.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "tabIndex", "indeterminate", "htmlFor"]);

/** Make an element. `props`: attributes, some properties, `on` for listeners, `vars` for custom CSS properties. */
export function h(tag, props = {}, ...children) {
  return furnish(document.createElement(tag), props, children);
}

/** Make an SVG element. */
export function svg(tag, props = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), props, children);
}

function furnish(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "vars") {
      vars(element, value);
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...present(children));
  return element;
}

function present(children) {
  return children.flat(3).filter((child) => child !== null && child !== undefined && child !== false);
}

/** Replace what is in an element. */
export function put(parent, ...children) {
  parent.replaceChildren(...present(children));
  return parent;
}

/** Set custom CSS properties; through the object model, which the page's policy allows where attributes are not. */
export function vars(element, values) {
  for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
}

/** Set an element's text, and only if it differs: selections, and readers of live regions, stay where they are. */
export function text(element, content) {
  const wanted = String(content ?? "");
  if (element.textContent !== wanted) element.textContent = wanted;
  return element;
}

/** Set or remove an attribute, and only if it differs. */
export function attribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value === true ? "" : value);
}

/**
 * Make the children of `parent` those of `items`, in order, keeping the nodes that are there.
 * `make(item)` returns a node; `update(node, item)` is called for new and old ones.
 */
export function keyed(parent, items, keyOf, make, update) {
  const before = parent.keyedNodes ?? new Map();
  const after = new Map();
  let place = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    const node = before.get(key) ?? make(item);
    before.delete(key);
    after.set(key, node);
    update(node, item);
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of before.values()) node.remove();
  parent.keyedNodes = after;
}

/** Tell those who listen to the page instead of looking at it. */
export function say(sentence) {
  text(document.getElementById("said"), sentence);
}

const ICONS = {
  plus: "M8 3v10M3 8h10",
  pause: "M5.5 3.5v9M10.5 3.5v9",
  play: "M5 3.2v9.6L12.5 8z",
  stop: "M4 4l8 8M12 4l-8 8",
  retry: "M12.7 6A5 5 0 1 0 13 8.6M13 3v3.2H9.8",
  save: "M8 2.5v7.5M4.8 7L8 10.2 11.2 7M3 13.2h10",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  up: "M3 10l5-5 5 5",
  again: "M3 8h8.5M8.5 4.5L12 8l-3.5 3.5",
  brush: "M13 3L7.2 8.8M7 9c-2-1-3.6.6-3.4 2.4.1 1-.7 1.4-1.3 1.4c1.9 1.2 5.4.6 5.2-2.3z",
  copy: "M5.5 5.5h7.5v7.5H5.5zM3 10.5V3h7.5",
  key: "M10.5 8.5a3 3 0 1 0-2.6-1.5L3 11.9V13.5h2.2v-1.7h1.7v-1.7h1.2",
  half: "M8 2.5a5.5 5.5 0 1 0 0 11zM8 2.5a5.5 5.5 0 0 1 0 11",
  search: "M7 2.8a4.2 4.2 0 1 0 0 8.4 4.2 4.2 0 0 0 0-8.4M10.2 10.2L13.5 13.5",
};

/** Return one of the page's drawings; what it stands for must be told in words beside it, or by an aria-label. */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 16 16", class: `icon icon-${name}`, "aria-hidden": "true" },
    svg("path", { d: ICONS[name] }),
  );
}

/** Make a button; `shortcut` is the key that does the same. */
export function button(label, { name = null, kind = "", press, title = null, shortcut = null } = {}) {
  return h(
    "button",
    { type: "button", class: `button ${kind}`, title, "aria-keyshortcuts": shortcut, on: { click: press } },
    name && icon(name),
    h("span", {}, label),
    shortcut && h("kbd", { "aria-hidden": "true" }, shortcut),
  );
}
