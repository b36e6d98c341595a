// The panel of the side bar: one job at a time, from its state down to its files.

import { ChartCard } from "./chart_card.js";
import { Commands } from "./commands.js";
import { element, say } from "./elements.js";
import { Gallery } from "./gallery.js";
import { Lists } from "./lists.js";
import { StateCard } from "./state_card.js";
import { STATES } from "./words.js";

/** @typedef {import("./jobs.js").Job} Job */

const EMPTY =
  "Nothing was trained since the server started. Queue a graph with Train LoRA: its loss, its samples and its " +
  "buttons appear here.";
const UNREACHED = "The server cannot be reached.";

export class Panel {
  /**
   * @param {import("./jobs.js").Jobs} jobs
   * @param {(path: string) => string} address of a route
   * @param {Storage} [storage] where the choices about the chart are remembered
   */
  constructor(jobs, address, storage = localStorage) {
    this.jobs = jobs;
    this.chosen = "";
    this.queued = false;
    this.state = new StateCard();
    this.commands = new Commands(jobs);
    this.chart = new ChartCard(storage);
    this.gallery = new Gallery((job, number, form) =>
      address(`/musubi/jobs/${job}/samples/${number}/${form}`),
    );
    this.lists = new Lists();
    this.choice = element("select", { "aria-label": "Job", onchange: () => this.#choose() });
    this.empty = element("p", { class: "musubi-empty" });
    const parts = [this.state, this.commands, this.chart, this.gallery, this.lists].map((part) => part.root);
    this.body = element("div", { class: "musubi-body" }, ...parts);
    const top = element("div", { class: "musubi-top" }, element("h2", {}, "Musubi training"), this.choice);
    this.root = element(
      "section",
      { class: "musubi", "aria-label": "Musubi training" },
      top,
      this.empty,
      this.body,
    );
    this.listener = () => this.#soon();
    this.jobs.addEventListener("change", this.listener);
    this.clock = setInterval(() => this.job?.running && this.#soon(), 1000);
    this.themes = new MutationObserver(() => this.chart.chart.draw());
    this.themes.observe(document.body, { attributes: true, attributeFilter: ["class", "style"] });
    this.draw();
  }

  remove() {
    clearInterval(this.clock);
    this.jobs.removeEventListener("change", this.listener);
    this.themes.disconnect();
    this.chart.remove();
    this.gallery.remove();
    this.root.remove();
  }

  /** The job that is shown: the one that was chosen, else the newest that runs, else the newest. */
  get job() {
    const { newest } = this.jobs;
    return (
      newest.find((one) => one.summary.id === this.chosen) ?? newest.find((one) => one.running) ?? newest[0]
    );
  }

  draw() {
    const { job } = this;
    this.empty.hidden = Boolean(job);
    this.body.hidden = !job;
    this.#drawChoice(job);
    if (!job) {
      say(this.empty, this.jobs.reached ? EMPTY : UNREACHED);
      return;
    }
    if (!job.loaded) void this.jobs.load(job.summary.id);
    this.state.show(job, this.chart.smoothed(job));
    this.commands.show(job);
    this.chart.show(job);
    this.gallery.show(job.summary.id, job.samples);
    this.lists.show(job);
  }

  /** Draw once before the next frame, however many events come. */
  #soon() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.draw();
    });
  }

  #choose() {
    this.chosen = this.choice.value;
    this.draw();
  }

  /** @param {Job | undefined} job */
  #drawChoice(job) {
    const { newest } = this.jobs;
    this.choice.hidden = newest.length < 2;
    const named = newest.map(({ summary }) => [summary.id, title(summary)]);
    const shown = JSON.stringify(named);
    if (this.choice.dataset.shown !== shown) {
      this.choice.dataset.shown = shown;
      this.choice.replaceChildren(...named.map(([id, text]) => element("option", { value: id }, text)));
    }
    if (job) this.choice.value = job.summary.id;
  }
}

/** @param {import("./jobs.js").Summary} summary */
function title({ name, started, state }) {
  const time = new Date(started * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return `${name} · ${time} · ${STATES[state] ?? state}`;
}
