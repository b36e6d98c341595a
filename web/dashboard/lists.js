// What a job said, and the files that it wrote: the newest first.

import { element, icon } from "./elements.js";

const ICONS = /** @type {Record<string, string>} */ ({
  note: "info-circle",
  warning: "exclamation-triangle",
  error: "times-circle",
});

export class Lists {
  constructor() {
    this.lines = element("ul", { class: "musubi-lines" });
    this.files = element("ul", { class: "musubi-files" });
    this.messages = element(
      "details",
      { class: "musubi-card", open: true },
      element("summary", {}, "Messages"),
      this.lines,
    );
    this.written = element(
      "details",
      { class: "musubi-card", open: true },
      element("summary", {}, "Files"),
      this.files,
    );
    this.root = element("div", { class: "musubi-lists" }, this.written, this.messages);
    this.shown = "";
  }

  /** @param {import("./jobs.js").Job} job */
  show({ summary, lines, files }) {
    const state = JSON.stringify([summary.id, lines, files]);
    if (state === this.shown) return;
    this.shown = state;
    this.messages.hidden = !lines.length;
    this.written.hidden = !files.length;
    this.lines.replaceChildren(...[...lines].reverse().map(lineItem));
    this.files.replaceChildren(...[...files].reverse().map(fileItem));
  }
}

/** @param {import("./jobs.js").Line} line */
function lineItem({ kind, text }) {
  return element(
    "li",
    { class: `musubi-${kind}` },
    icon(ICONS[kind] ?? ICONS.note),
    element("span", {}, text),
  );
}

/** @param {import("./jobs.js").WrittenFile} file */
function fileItem({ what, path }) {
  const name = element("span", { class: "musubi-path" }, path);
  return element("li", {}, element("span", { class: "musubi-what" }, what), name);
}
