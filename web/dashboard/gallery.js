// The samples of a run, step by step, and one of them large.

import { element, icon } from "./elements.js";

/** @typedef {import("./jobs.js").Sample} Sample */
/** @typedef {(job: string, number: number, form: "still" | "clip") => string} Address */

const STEPS_FIRST = 6; // shown before "Show all": pictures cost memory

/**
 * The samples of each step, the newest step first.
 * @param {Sample[]} samples
 * @returns {[number, Sample[]][]}
 */
export function bySteps(samples) {
  /** @type {Map<number, Sample[]>} */
  const steps = new Map();
  for (const sample of samples) steps.set(sample.step, [...(steps.get(sample.step) ?? []), sample]);
  return [...steps].sort(([one], [other]) => other - one);
}

/**
 * The sample of the same prompt before or after this one, to compare steps.
 * @param {Sample[]} samples
 * @param {Sample} sample
 * @param {1 | -1} way 1 is later
 * @returns {Sample | undefined}
 */
export function neighbour(samples, sample, way) {
  const same = samples
    .filter((one) => one.title === sample.title)
    .sort((one, other) => one.step - other.step || one.number - other.number);
  return same[same.findIndex((one) => one.number === sample.number) + way];
}

export class Gallery {
  /** @param {Address} address */
  constructor(address) {
    this.address = address;
    this.steps = element("div", { class: "musubi-gallery" });
    const heading = element("h3", {}, "Samples");
    this.root = element("section", { class: "musubi-card", "aria-label": "Samples" }, heading, this.steps);
    this.job = "";
    this.shown = "";
    this.all = false;
    /** @type {Sample[]} */
    this.samples = [];
    this.large = new Large((sample) => this.#source(sample, sample.clip ? "clip" : "still"));
  }

  /**
   * @param {string} job
   * @param {Sample[]} samples
   */
  show(job, samples) {
    if (job !== this.job) this.all = false;
    [this.job, this.samples] = [job, samples];
    const state = [job, this.all, ...samples.map((one) => one.number)].join(" ");
    if (state === this.shown) return; // the pictures stay: they would flicker, and lose the focus
    this.shown = state;
    this.root.hidden = !samples.length;
    const steps = bySteps(samples);
    const visible = this.all ? steps : steps.slice(0, STEPS_FIRST);
    this.steps.replaceChildren(...visible.map(([step, ofStep]) => this.#step(step, ofStep)));
    if (visible.length < steps.length) {
      const more = `Show all ${steps.length} steps`;
      const button = { class: "musubi-quiet", type: "button", onclick: () => this.#showAll() };
      this.steps.append(element("button", button, more));
    }
  }

  remove() {
    this.large.remove();
  }

  #showAll() {
    this.all = true;
    this.show(this.job, this.samples);
  }

  /**
   * @param {Sample} sample
   * @param {"still" | "clip"} form
   */
  #source(sample, form) {
    return this.address(this.job, sample.number, form);
  }

  /**
   * @param {number} step
   * @param {Sample[]} samples
   */
  #step(step, samples) {
    const heading = element("h4", {}, step === 0 ? "Before training" : `Step ${step}`);
    const pictures = samples.map((sample) => this.#thumbnail(sample));
    return element(
      "section",
      { class: "musubi-step" },
      heading,
      element("div", { class: "musubi-thumbnails" }, ...pictures),
    );
  }

  /** @param {Sample} sample */
  #thumbnail(sample) {
    const still = this.#source(sample, "still");
    const picture = element("img", {
      src: still,
      alt: `${sample.title || "Sample"}, step ${sample.step}`,
      width: sample.width,
      height: sample.height,
      loading: "lazy",
      onerror: () => button.remove(),
    });
    const open = () => this.large.open(sample, () => this.samples);
    const move = (/** @type {boolean} */ on) => () => {
      if (sample.clip) picture.src = on ? this.#source(sample, "clip") : still;
    };
    const button = element(
      "button",
      {
        class: "musubi-thumbnail",
        type: "button",
        title: sample.title,
        onclick: open,
        onpointerenter: move(true),
        onpointerleave: move(false),
      },
      picture,
    );
    if (sample.clip) button.append(icon("play"));
    return button;
  }
}

/** One sample in the middle of the window; the arrow keys go through the steps. */
class Large {
  /** @param {(sample: Sample) => string} source */
  constructor(source) {
    this.source = source;
    this.picture = element("img");
    this.caption = element("p", { class: "musubi-caption", "aria-live": "polite" });
    this.details = element("dl", { class: "musubi-details" });
    this.before = this.#button("chevron-left", "Earlier step", () => this.#go(-1));
    this.after = this.#button("chevron-right", "Later step", () => this.#go(1));
    const close = this.#button("times", "Close", () => this.dialog.close());
    /** @type {HTMLDialogElement} */
    this.dialog = element(
      "dialog",
      {
        class: "musubi musubi-large",
        "aria-label": "Sample",
        onkeydown: (event) => this.#key(event),
        onclick: (event) => event.target === this.dialog && this.dialog.close(),
      },
      element("div", { class: "musubi-bar" }, this.before, this.caption, this.after, close),
      this.picture,
      this.details,
    );
    /** @type {Sample | null} */
    this.sample = null;
    /** @type {() => Sample[]} */
    this.among = () => [];
  }

  /**
   * @param {Sample} sample
   * @param {() => Sample[]} among all samples, also those that come while it is open
   */
  open(sample, among) {
    this.among = among;
    document.body.append(this.dialog);
    this.#show(sample);
    this.dialog.showModal();
  }

  remove() {
    this.dialog.remove();
  }

  /**
   * @param {string} name
   * @param {string} label
   * @param {() => void} action
   */
  #button(name, label, action) {
    return element(
      "button",
      { type: "button", "aria-label": label, title: label, onclick: action },
      icon(name),
    );
  }

  /** @param {Sample} sample */
  #show(sample) {
    this.sample = sample;
    this.picture.src = this.source(sample);
    this.picture.alt = sample.title || "Sample";
    this.caption.textContent = [`Step ${sample.step}`, sample.title].filter(Boolean).join(" · ");
    const rows = Object.entries(sample.details).flatMap(([name, value]) => [
      element("dt", {}, name),
      element("dd", {}, value),
    ]);
    this.details.replaceChildren(...rows);
    // Not "disabled": a button that has the focus and is disabled swallows the arrow keys, and Escape.
    this.before.ariaDisabled = String(!neighbour(this.among(), sample, -1));
    this.after.ariaDisabled = String(!neighbour(this.among(), sample, 1));
  }

  /** @param {1 | -1} way */
  #go(way) {
    const next = this.sample && neighbour(this.among(), this.sample, way);
    if (next) this.#show(next);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    event.stopPropagation(); // Escape and arrows are meant for the picture, not for the graph
    if (event.key === "Escape") this.dialog.close(); // some front ends keep the browser from doing it
    if (event.key === "ArrowLeft") this.#go(-1);
    if (event.key === "ArrowRight") this.#go(1);
  }
}
