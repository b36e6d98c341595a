// What this page knows of the jobs: filled from the server when it opens, then kept up by events.

import { Curve } from "./curves.js";

/**
 * @typedef {{name: string, done: number, total: number | null, text: string, pace: number | null}} Stage
 * @typedef {{id: string, node: string, prompt_id: string, name: string, state: string, message: string,
 *   started: number, ended: number, now: number, commands: string[], asked: string[], update: number,
 *   stage: Stage | null, latest: Record<string, number>}} Summary
 * @typedef {{number: number, step: number, title: string, width: number, height: number,
 *   details: Record<string, string>, clip: boolean}} Sample
 * @typedef {{kind: "note" | "warning" | "error", text: string, time: number}} Line
 * @typedef {{what: string, path: string}} WrittenFile
 * @typedef {{job: Summary, points?: [number, Record<string, number>][], samples?: Sample[], lines?: Line[],
 *   files?: WrittenFile[]}} Update
 * @typedef {Summary & {curves: Record<string, number[][]>, samples: Sample[], lines: Line[],
 *   files: WrittenFile[]}} Whole
 * @typedef {(path: string, options?: RequestInit) => Promise<Response>} Fetch
 */

const LINES = 100; // of messages and of files, as on the server
const SAMPLES = 400;

/** One job as the page knows it. */
export class Job {
  /** @param {Summary} summary */
  constructor(summary) {
    this.summary = summary;
    this.received = Date.now() / 1000;
    /** @type {Map<string, Curve>} */
    this.curves = new Map();
    /** @type {Sample[]} */
    this.samples = [];
    /** @type {Line[]} */
    this.lines = [];
    /** @type {WrittenFile[]} */
    this.files = [];
    this.loaded = false;
  }

  get running() {
    return this.summary.state === "running";
  }

  /** Seconds since the job began, by the server's clock. */
  elapsed(now = Date.now() / 1000) {
    const { started, ended, now: sent } = this.summary;
    return ended ? ended - started : sent - started + (now - this.received);
  }

  /** @param {Summary} summary */
  see(summary) {
    this.summary = summary;
    this.received = Date.now() / 1000;
  }

  /** @param {Whole} whole */
  fill(whole) {
    const { curves, samples, lines, files, ...summary } = whole;
    this.see(summary);
    this.curves = new Map(Object.entries(curves).map(([name, rows]) => [name, new Curve(rows)]));
    [this.samples, this.lines, this.files] = [samples, lines, files];
    this.loaded = true;
  }

  /** @param {Update} update */
  apply({ job, points = [], samples = [], lines = [], files = [] }) {
    this.see(job);
    for (const [step, values] of points) {
      for (const [name, value] of Object.entries(values)) {
        let curve = this.curves.get(name);
        if (!curve) this.curves.set(name, (curve = new Curve()));
        curve.add(step, value);
      }
    }
    this.samples = [...this.samples, ...samples].slice(-SAMPLES);
    this.lines = [...this.lines, ...lines].slice(-LINES);
    this.files = [...this.files, ...files].slice(-LINES);
  }
}

/** All jobs of the server. Dispatches "change" whenever something is new. */
export class Jobs extends EventTarget {
  /** @param {Fetch} fetch */
  constructor(fetch) {
    super();
    this.fetch = fetch;
    /** @type {Map<string, Job>} */
    this.jobs = new Map();
    /** @type {Map<string, Update[]>} updates that came while their job was being loaded */
    this.waiting = new Map();
    this.reached = true;
  }

  /** The newest first. */
  get newest() {
    return [...this.jobs.values()].sort((one, other) => other.summary.started - one.summary.started);
  }

  /** Ask the server for everything: when the page opens, and when the connection comes back. */
  async refresh() {
    const answer = await this.#ask("/musubi/jobs");
    this.reached = answer !== null;
    if (answer) {
      const known = new Set(answer.jobs.map((/** @type {Summary} */ one) => one.id));
      for (const id of this.jobs.keys()) if (!known.has(id)) this.jobs.delete(id);
      for (const one of answer.jobs) {
        const job = this.jobs.get(one.id);
        if (!job) this.jobs.set(one.id, new Job(one));
        else if (job.summary.update !== one.update) job.loaded = false;
      }
    }
    this.#changed();
  }

  /**
   * Everything about one job, unless it is here already.
   * @param {string} id
   */
  async load(id) {
    const job = this.jobs.get(id);
    if (!job || job.loaded || this.waiting.has(id)) return;
    this.waiting.set(id, []);
    const whole = await this.#ask(`/musubi/jobs/${id}`);
    const missed = this.waiting.get(id) ?? [];
    this.waiting.delete(id);
    if (!whole) return; // the next event asks again
    job.fill(whole);
    for (const update of missed) this.#apply(job, update);
    this.#changed();
  }

  /**
   * An event of the server. One that follows the last is applied; a gap means that events were lost, so the
   * job is loaded again.
   * @param {Update} update
   */
  update(update) {
    const { id } = update.job;
    let job = this.jobs.get(id);
    if (!job) {
      this.jobs.set(id, (job = new Job({ ...update.job, update: 0 })));
      job.loaded = update.job.update === 1; // seen from its beginning: nothing to load
    }
    if (this.waiting.has(id)) this.waiting.get(id)?.push(update);
    else if (job.loaded) this.#apply(job, update);
    else job.see(update.job);
    this.#changed();
  }

  /**
   * Ask a job for something. Returns what went wrong, or an empty text.
   * @param {string} id
   * @param {string} command
   */
  async command(id, command) {
    try {
      const response = await this.fetch(`/musubi/jobs/${id}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ command }),
      });
      if (response.ok) return "";
      const answer = await response.json().catch(() => ({}));
      return String(answer.error ?? `The server answered ${response.status}.`);
    } catch {
      return "The server cannot be reached.";
    }
  }

  /**
   * @param {Job} job
   * @param {Update} update
   */
  #apply(job, update) {
    const step = update.job.update - job.summary.update;
    if (step === 1) job.apply(update);
    else if (step > 1) {
      job.loaded = false;
      job.see(update.job);
    }
  }

  /** @param {string} path */
  async #ask(path) {
    try {
      const response = await this.fetch(path);
      return response.ok ? await response.json() : null;
    } catch {
      return null; // the server is away; ComfyUI says so, and "reconnected" brings us back here
    }
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
