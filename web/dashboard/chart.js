// A chart of curves on a plain canvas: axes, lines, a cursor that mouse and arrow keys move.

import { logTicks, nearest, range, ticks } from "./curves.js";
import { element } from "./elements.js";
import { short } from "./words.js";

/**
 * One line of the chart. `values` has one number per point. `noisy`: its spikes may leave the picture.
 * `colour`: the name of a CSS variable.
 * @typedef {{name: string, points: import("./curves.js").Point[], values: number[], colour: string,
 *   faint?: boolean, noisy?: boolean, dots?: boolean}} Line
 * @typedef {{left: number, top: number, width: number, height: number, x: (step: number) => number,
 *   y: (value: number) => number, steps: [number, number], values: [number, number]}} Frame
 */

const FONT = "11px Inter, system-ui, sans-serif";
const TICK_GAP = 48; // pixels between the lines of the value axis, about

export class Chart {
  /** @param {(step: number | null) => void} onCursor told where the cursor is; null is nowhere */
  constructor(onCursor) {
    this.onCursor = onCursor;
    this.canvas = element("canvas", {
      class: "musubi-chart",
      role: "img",
      tabindex: "0",
      onpointermove: (event) => this.#point(event.offsetX),
      onpointerleave: () => this.#moveTo(null),
      onblur: () => this.#moveTo(null),
      onkeydown: (event) => this.#key(event),
    });
    /** @type {Line[]} */
    this.lines = [];
    this.log = false;
    /** @type {number | null} */
    this.cursor = null;
    /** @type {Frame | null} */
    this.frame = null;
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.canvas);
  }

  /**
   * Show other lines.
   * @param {Line[]} lines
   * @param {{log: boolean, label: string}} how label: what a screen reader says
   */
  show(lines, { log, label }) {
    this.lines = lines;
    this.log = log;
    this.canvas.setAttribute("aria-label", label);
    this.draw();
  }

  remove() {
    this.sizes.disconnect();
    this.canvas.remove();
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const sharp = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * sharp);
    this.canvas.height = Math.round(height * sharp);
    const pen = this.canvas.getContext("2d");
    if (!pen) return;
    pen.scale(sharp, sharp);
    pen.font = FONT;
    const style = getComputedStyle(this.canvas);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    const marks = this.#marks(height);
    this.frame = this.#frame(pen, width, height, marks);
    drawAxes(pen, this.frame, marks, colour);
    pen.save();
    pen.beginPath();
    pen.rect(this.frame.left, this.frame.top, this.frame.width, this.frame.height);
    pen.clip();
    for (const line of this.lines) drawLine(pen, this.frame, line, colour(line.colour));
    pen.restore();
    if (this.cursor !== null) drawCursor(pen, this.frame, this.lines, this.cursor, colour);
  }

  /** @param {number} height */
  #marks(height) {
    const [low, high] = this.#values();
    return this.log ? logTicks(low, high) : ticks(low, high, height / TICK_GAP);
  }

  /** @returns {[number, number]} */
  #values() {
    const noisy = this.lines.filter((line) => line.noisy).flatMap((line) => line.values);
    return range(
      noisy,
      this.lines.filter((line) => !line.noisy).flatMap((line) => line.values),
      this.log,
    );
  }

  /** @returns {[number, number]} */
  #steps() {
    const shown = this.lines.filter((line) => line.points.length);
    if (!shown.length) return [0, 1];
    const first = Math.min(...shown.map((line) => line.points[0].step));
    const last = Math.max(...shown.map((line) => line.points[line.points.length - 1].step));
    return [first, Math.max(last, first + 1)];
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number} width
   * @param {number} height
   * @param {number[]} marks
   * @returns {Frame}
   */
  #frame(pen, width, height, marks) {
    const widest = Math.max(...marks.map((mark) => pen.measureText(short(mark)).width), 18);
    const [left, top] = [Math.ceil(widest) + 8, 8];
    const [inner, tall] = [Math.max(1, width - left - 10), Math.max(1, height - top - 20)];
    const [steps, values] = [this.#steps(), this.#values()];
    const scale = this.log ? Math.log : (/** @type {number} */ one) => one;
    const [low, high] = [scale(values[0]), scale(values[1])];
    return {
      left,
      top,
      width: inner,
      height: tall,
      steps,
      values,
      x: (step) => left + ((step - steps[0]) / (steps[1] - steps[0])) * inner,
      y: (value) => top + tall - ((scale(value) - low) / (high - low)) * tall,
    };
  }

  /** @param {number} x pixels from the left edge of the canvas */
  #point(x) {
    const { frame } = this;
    if (!frame || !this.lines.some((line) => line.points.length)) return;
    const [first, last] = frame.steps;
    const step = first + ((x - frame.left) / frame.width) * (last - first);
    this.#moveTo(this.#nearestStep(Math.min(last, Math.max(first, step))));
  }

  /** @param {number} step */
  #nearestStep(step) {
    const points = this.#longest();
    const at = nearest(points, step);
    return at < 0 ? null : points[at].step;
  }

  #longest() {
    return this.lines.reduce(
      (most, { points }) => (points.length > most.length ? points : most),
      this.lines[0]?.points ?? [],
    );
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const points = this.#longest();
    const moves = /** @type {Record<string, number>} */ ({
      ArrowLeft: -1,
      ArrowRight: 1,
      PageUp: 20,
      PageDown: -20,
    });
    const ends = /** @type {Record<string, number>} */ ({ Home: 0, End: points.length - 1 });
    if (!points.length || !(event.key in moves || event.key in ends)) return;
    event.preventDefault();
    event.stopPropagation(); // the graph listens to arrow keys too
    const at = this.cursor === null ? points.length - 1 : nearest(points, this.cursor);
    const next = event.key in ends ? ends[event.key] : at + moves[event.key];
    this.#moveTo(points[Math.min(points.length - 1, Math.max(0, next))].step);
  }

  /** @param {number | null} step */
  #moveTo(step) {
    if (step === this.cursor) return;
    this.cursor = step;
    this.draw();
    this.onCursor(step);
  }
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Frame} frame
 * @param {number[]} marks
 * @param {(name: string) => string} colour
 */
function drawAxes(pen, frame, marks, colour) {
  pen.strokeStyle = colour("--musubi-grid");
  pen.fillStyle = colour("--musubi-soft");
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const mark of marks) {
    const y = Math.round(frame.y(mark)) + 0.5;
    line(pen, frame.left, y, frame.left + frame.width, y);
    pen.fillText(short(mark), frame.left - 6, y);
  }
  pen.textBaseline = "alphabetic";
  pen.textAlign = "center";
  const [first, last] = frame.steps;
  const bottom = frame.top + frame.height;
  for (const step of ticks(first, last, frame.width / 80).filter(Number.isInteger)) {
    const half = pen.measureText(String(step)).width / 2;
    const x = Math.min(frame.left + frame.width - half, Math.max(half, frame.x(step)));
    pen.fillText(String(step), x, bottom + 15);
  }
  line(pen, frame.left, bottom + 0.5, frame.left + frame.width, bottom + 0.5);
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {number} x
 * @param {number} y
 * @param {number} toX
 * @param {number} toY
 */
function line(pen, x, y, toX, toY) {
  pen.beginPath();
  pen.moveTo(x, y);
  pen.lineTo(toX, toY);
  pen.stroke();
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Frame} frame
 * @param {Line} what
 * @param {string} colour
 */
function drawLine(pen, frame, { points, values, faint, dots }, colour) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.lineWidth = faint ? 1 : 2;
  pen.lineJoin = "round";
  if (faint && points.some((point) => point.count > 1)) {
    // Where steps share a point, all that they reached.
    pen.globalAlpha = 0.22;
    pen.beginPath();
    points.forEach((point) => pen.lineTo(frame.x(point.step), frame.y(point.high)));
    [...points].reverse().forEach((point) => pen.lineTo(frame.x(point.step), frame.y(point.low)));
    pen.fill();
  }
  pen.globalAlpha = faint ? 0.45 : 1;
  pen.beginPath();
  points.forEach((point, at) => pen.lineTo(frame.x(point.step), frame.y(values[at])));
  pen.stroke();
  if (dots || points.length === 1)
    points.forEach((point, at) => dot(pen, frame.x(point.step), frame.y(values[at]), 3));
  pen.globalAlpha = 1;
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {number} x
 * @param {number} y
 * @param {number} radius
 */
function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

/**
 * @param {CanvasRenderingContext2D} pen
 * @param {Frame} frame
 * @param {Line[]} lines
 * @param {number} step
 * @param {(name: string) => string} colour
 */
function drawCursor(pen, frame, lines, step, colour) {
  const x = Math.round(frame.x(step)) + 0.5;
  pen.strokeStyle = colour("--musubi-soft");
  pen.setLineDash([3, 3]);
  line(pen, x, frame.top, x, frame.top + frame.height);
  pen.setLineDash([]);
  for (const { points, values, colour: name } of lines) {
    const at = nearest(points, step);
    if (at < 0) continue;
    const y = frame.y(values[at]);
    if (y < frame.top || y > frame.top + frame.height) continue;
    pen.fillStyle = colour(name);
    dot(pen, frame.x(points[at].step), y, 4);
  }
}
