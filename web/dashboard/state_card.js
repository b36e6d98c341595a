// How a job goes: its name and state, how far it is, and its numbers now.

import { element, say } from "./elements.js";
import { duration, short, speed, stageName, STATES, timeLeft } from "./words.js";

/** @typedef {import("./jobs.js").Job} Job */

const TILES = ["Loss", "Validation", "Learn rate", "Speed", "Time left", "Memory"];

export class StateCard {
  constructor() {
    this.name = element("h3");
    this.state = element("span", { class: "musubi-state", role: "status" });
    this.stage = element("span");
    this.passed = element("span");
    this.fill = element("div");
    const limits = { role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100 };
    this.bar = element("div", { class: "musubi-progress", ...limits }, this.fill);
    this.message = element("p", { class: "musubi-message", role: "alert", hidden: true });
    /** @type {Record<string, HTMLElement>} */
    this.tiles = Object.fromEntries(TILES.map((name) => [name, element("dd", {}, "–")]));
    const tiles = TILES.map((name) => element("div", {}, element("dt", {}, name), this.tiles[name]));
    this.root = element(
      "div",
      { class: "musubi-body" },
      element("header", {}, this.name, this.state),
      element("div", { class: "musubi-stage" }, this.stage, this.passed),
      this.bar,
      this.message,
      element("dl", { class: "musubi-tiles" }, ...tiles),
    );
  }

  /**
   * @param {Job} job
   * @param {number} loss the smoothed loss now
   */
  show(job, loss) {
    const { name, state, stage, message } = job.summary;
    say(this.name, name);
    say(this.state, STATES[state] ?? state);
    this.state.dataset.state = state;
    const part = stage?.total ? Math.floor((100 * stage.done) / stage.total) : 0;
    const counted = count(stage);
    say(this.stage, counted);
    say(this.passed, [stage?.total ? `${part} %` : "", duration(job.elapsed())].filter(Boolean).join(" · "));
    this.fill.style.width = `${part}%`;
    this.bar.setAttribute("aria-valuenow", String(part));
    this.bar.setAttribute("aria-label", counted);
    this.bar.dataset.state = state;
    this.message.hidden = !message;
    say(this.message, message);
    const values = tileValues(job, loss);
    for (const tile of TILES) say(this.tiles[tile], values[tile]);
  }
}

/** @param {import("./jobs.js").Stage | null} stage */
function count(stage) {
  if (!stage) return "Starting";
  return `${stageName(stage.name)}  ${stage.total === null ? stage.done : `${stage.done} / ${stage.total}`}`;
}

/**
 * @param {Job} job
 * @param {number} loss
 * @returns {Record<string, string>}
 */
function tileValues(job, loss) {
  const { stage, latest } = job.summary;
  const rate = Object.keys(latest).find((name) => name.startsWith("lr/"));
  const memory = latest["memory/peak_gb"];
  return {
    Loss: short(loss),
    Validation: short(latest["loss/validation"]),
    "Learn rate": short(rate === undefined ? undefined : latest[rate]),
    Speed: speed(stage?.pace),
    "Time left": duration(job.running ? timeLeft(stage, Date.now() / 1000 - job.received) : null),
    Memory: memory === undefined ? "–" : `${memory.toFixed(1)} GB`,
  };
}
