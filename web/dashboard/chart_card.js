// The chart with what belongs to it: which numbers, how smooth, and the values under the cursor.

import { Chart } from "./chart.js";
import { nearest, smooth } from "./curves.js";
import { element, say } from "./elements.js";
import { linesOf, PLOTS, plotsOf } from "./plots.js";
import { short } from "./words.js";

/** @typedef {import("./jobs.js").Job} Job */

const STORED = "musubi.chart";

/**
 * What the slider means: 0 is none, and each fifth of the way forgets ten times more slowly at the end.
 * @param {number} slider 0..100
 */
export function keepOf(slider) {
  return slider <= 0 ? 0 : 1 - 10 ** (-slider / 33.4);
}

export class ChartCard {
  /** @param {Storage} storage */
  constructor(storage) {
    this.storage = storage;
    this.settings = { plot: "loss", smoothing: 60, log: false, .../** @type {any} */ (stored(storage)) };
    /** @type {Job | null} */
    this.job = null;
    /** @type {import("./chart.js").Line[]} */
    this.lines = [];
    this.chart = new Chart(() => this.#drawLegend());
    this.tabs = element("div", { class: "musubi-tabs", role: "tablist", "aria-label": "Curves" });
    this.legend = element("div", { class: "musubi-legend" });
    this.slider = element("input", {
      type: "range",
      min: 0,
      max: 100,
      value: this.settings.smoothing,
      oninput: () => this.#set({ smoothing: Number(this.slider.value) }),
    });
    this.log = element("input", { type: "checkbox", onchange: () => this.#set({ log: this.log.checked }) });
    this.log.checked = this.settings.log;
    this.smoothing = element("label", {}, "Smoothing", this.slider);
    this.root = element(
      "section",
      { class: "musubi-card", "aria-label": "Curves" },
      this.tabs,
      this.chart.canvas,
      this.legend,
      element(
        "div",
        { class: "musubi-controls" },
        this.smoothing,
        element("label", {}, this.log, "Log scale"),
      ),
    );
  }

  get plot() {
    return PLOTS.find((one) => one.id === this.settings.plot) ?? PLOTS[0];
  }

  /**
   * The smoothed loss now, NaN before the first step.
   * @param {Job} job
   */
  smoothed(job) {
    const values = smooth(job.curves.get("loss/current")?.points ?? [], keepOf(this.settings.smoothing));
    return values.length ? values[values.length - 1] : NaN;
  }

  /** @param {Job} job */
  show(job) {
    this.job = job;
    const plots = plotsOf(job.curves.keys());
    const plot = plots.includes(this.plot) ? this.plot : plots[0];
    this.#drawTabs(plots, plot);
    this.lines = linesOf(job.curves, plot, keepOf(this.settings.smoothing));
    this.smoothing.hidden = plot.id !== "loss";
    this.#drawLegend();
    const now = this.lines
      .map((line) => `${line.name} ${short(line.values[line.values.length - 1])}`)
      .join(", ");
    this.chart.show(this.lines, {
      log: this.settings.log,
      label: `${plot.title}: ${now}. Arrow keys read other steps.`,
    });
  }

  remove() {
    this.chart.remove();
  }

  /** @param {Partial<{plot: string, smoothing: number, log: boolean}>} change */
  #set(change) {
    Object.assign(this.settings, change);
    this.storage.setItem(STORED, JSON.stringify(this.settings));
    if (this.job) this.show(this.job);
  }

  /**
   * @param {import("./plots.js").Plot[]} plots
   * @param {import("./plots.js").Plot} chosen
   */
  #drawTabs(plots, chosen) {
    const shown = JSON.stringify([plots, chosen.id]);
    if (this.tabs.dataset.shown === shown) return;
    this.tabs.dataset.shown = shown;
    const focused = this.tabs.contains(document.activeElement);
    const tabs = plots.map(({ id, title }) =>
      element(
        "button",
        {
          type: "button",
          role: "tab",
          "aria-selected": String(id === chosen.id),
          tabindex: id === chosen.id ? 0 : -1,
          onclick: () => this.#set({ plot: id }),
          onkeydown: (event) => this.#key(event, plots),
        },
        title,
      ),
    );
    this.tabs.replaceChildren(...tabs);
    if (focused) tabs[plots.indexOf(chosen)].focus();
  }

  /**
   * @param {KeyboardEvent} event
   * @param {import("./plots.js").Plot[]} plots
   */
  #key(event, plots) {
    const way = /** @type {Record<string, number>} */ ({ ArrowLeft: -1, ArrowRight: 1 })[event.key];
    if (!way) return;
    event.preventDefault();
    event.stopPropagation();
    const at = plots.indexOf(this.plot) + way;
    this.#set({ plot: plots[(at + plots.length) % plots.length].id });
  }

  /** The lines by name, with their values at the cursor, or the newest. */
  #drawLegend() {
    const step = this.chart.cursor;
    const rows = this.lines.map((line) => {
      const at = step === null ? line.points.length - 1 : nearest(line.points, step);
      return {
        name: line.name,
        colour: line.colour,
        faint: Boolean(line.faint),
        value: short(line.values[at]),
      };
    });
    while (this.legend.children.length > rows.length + 1) this.legend.lastElementChild?.remove();
    rows.forEach((row, at) => this.#drawRow(this.#row(at), row));
    const place = this.#row(rows.length);
    place.className = "musubi-place";
    say(place, step === null ? "" : `step ${step}`);
  }

  /** @param {number} at */
  #row(at) {
    const found = this.legend.children[at];
    if (found) return /** @type {HTMLElement} */ (found);
    const made = element("span", {});
    this.legend.append(made);
    return made;
  }

  /**
   * @param {HTMLElement} where
   * @param {{name: string, colour: string, faint: boolean, value: string}} row
   */
  #drawRow(where, { name, colour, faint, value }) {
    where.className = faint ? "musubi-key musubi-faint" : "musubi-key";
    if (where.children.length !== 2) {
      where.replaceChildren(element("i", { "aria-hidden": "true" }), element("span", {}));
    }
    const [mark, text] = /** @type {HTMLElement[]} */ ([...where.children]);
    mark.style.background = `var(${colour})`;
    say(text, `${name} ${value}`);
  }
}

/**
 * @param {Storage} storage
 * @returns {object} what was chosen before; nothing when it cannot be read
 */
function stored(storage) {
  try {
    const found = JSON.parse(storage.getItem(STORED) ?? "{}");
    return typeof found === "object" && found !== null ? found : {};
  } catch {
    return {};
  }
}
