// The buttons: what a person may ask of a running job.

import { element, icon, say } from "./elements.js";

const COMMANDS = [
  {
    command: "save",
    picture: "save",
    label: "Save now",
    asked: "Saving…",
    tooltip:
      "Writes the LoRA and the state of the run after this step. Training goes on, unchanged to the last bit.",
  },
  {
    command: "sample",
    picture: "image",
    label: "Sample now",
    asked: "Sampling…",
    tooltip: "Makes the sample pictures after this step. Training goes on.",
  },
  {
    command: "stop",
    picture: "stop-circle",
    label: "Stop and keep",
    asked: "Stopping…",
    tooltip:
      "Ends the training after this step, saves the LoRA and the state of the run, and lets the rest of the " +
      "graph run. Queue the graph again to go on.",
  },
];

export class Commands {
  /** @param {import("./jobs.js").Jobs} jobs */
  constructor(jobs) {
    this.jobs = jobs;
    /** @type {import("./jobs.js").Job | null} */
    this.job = null;
    /** @type {Map<string, {button: HTMLButtonElement, text: HTMLElement}>} */
    this.buttons = new Map(COMMANDS.map((one) => [one.command, this.#button(one)]));
    this.answer = element("p", { class: "musubi-answer", role: "alert" });
    const row = element(
      "div",
      { class: "musubi-buttons" },
      ...[...this.buttons.values()].map((one) => one.button),
    );
    this.root = element("div", {}, row, this.answer);
  }

  /** @param {import("./jobs.js").Job} job */
  show(job) {
    if (this.job?.summary.id !== job.summary.id) say(this.answer, "");
    this.job = job;
    const { commands, asked } = job.summary;
    this.root.hidden = !job.running || !commands.length;
    for (const one of COMMANDS) {
      const { button, text } = this.#of(one.command);
      const waits = asked.includes(one.command);
      button.hidden = !commands.includes(one.command);
      button.disabled = waits;
      say(text, waits ? one.asked : one.label);
    }
  }

  /** @param {typeof COMMANDS[number]} one */
  #button({ command, picture, label, tooltip }) {
    const text = element("span", {}, label);
    const press = () => void this.#press(command);
    const attributes = { type: "button", title: tooltip, "data-command": command, onclick: press };
    return { button: element("button", attributes, icon(picture), text), text };
  }

  /** @param {string} command */
  #of(command) {
    return /** @type {{button: HTMLButtonElement, text: HTMLElement}} */ (this.buttons.get(command));
  }

  /** @param {string} command */
  async #press(command) {
    if (!this.job) return;
    this.#of(command).button.disabled = true; // until the server has said that it was heard
    say(this.answer, await this.jobs.command(this.job.summary.id, command));
    this.show(this.job);
  }
}
