// Signing in where the farm wants a key, and out again.

import { forgetKey, get, key, keepKey, Problem } from "./api.js";
import { button, h, say, text } from "./dom.js";

let dialog = null;

/** Ask for a key until the farm takes one; `then` is called with it in place. */
export function askForKey(then) {
  if (dialog) return;
  const input = h("input", {
    type: "password",
    id: "key",
    name: "key",
    autocomplete: "current-password",
    required: true,
    spellcheck: "false",
  });
  const stay = h("input", { type: "checkbox", id: "stay" });
  const wasIn = key() !== null;
  const problem = h("p", { class: "problem", role: "alert", hidden: !wasIn });
  text(problem, wasIn ? "The farm does not take this key any more." : "");
  const submit = async (event) => {
    event.preventDefault();
    const secret = input.value.trim();
    if (!/^[!-~]+$/.test(secret)) return complain("A key has no blanks, and ASCII characters alone.");
    keepKey(secret, { forLong: stay.checked });
    try {
      await get("v1/whoami");
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      if (error.status === 401) forgetKey();
      return complain(error.status === 401 ? "The farm does not know this key." : error.message);
    }
    dialog.close();
    dialog.remove();
    dialog = null;
    say("Signed in.");
    return then();
  };
  const complain = (sentence) => {
    text(problem, sentence);
    problem.hidden = false;
    input.select();
  };
  dialog = h(
    "dialog",
    { class: "key-dialog", "aria-labelledby": "key-title", on: { cancel: (event) => event.preventDefault() } },
    h(
      "form",
      { on: { submit } },
      h("h2", { id: "key-title" }, "This farm asks for a key"),
      h("p", { class: "faint" }, "Its operator makes one with ", h("code", {}, "farm keys create"), "."),
      h("div", { class: "field" }, h("label", { htmlFor: "key" }, "API key"), input),
      h("p", { class: "check" }, stay, h("label", { htmlFor: "stay" }, "Stay signed in on this device")),
      problem,
      h("p", { class: "actions" }, h("button", { type: "submit", class: "button primary" }, "Sign in")),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
}

/** Make the button that signs out; `then` is called without a key. */
export function signOutButton(then) {
  return button("Sign out", {
    name: "key",
    kind: "quiet",
    press: () => {
      forgetKey();
      then();
    },
  });
}
