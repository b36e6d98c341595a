// Curves of numbers over steps, in a bounded space. Pure: no page, no network.

/** The most points of one curve. The server keeps as many. */
export const POINTS = 800;

/**
 * The values of `count` steps in a row, the last of them `step`.
 * @typedef {{step: number, mean: number, low: number, high: number, count: number}} Point
 */

/**
 * One number over the steps. When it is full, neighbours are joined: half the points, the whole run.
 * `nodes/job_history.py` does the same, so that a page that watched and one that was reloaded agree.
 */
export class Curve {
  /** @param {number[][]} [rows] points as the server sends them: [step, mean, low, high, count] */
  constructor(rows = [], limit = POINTS) {
    this.limit = limit;
    /** @type {Point[]} */
    this.points = rows.map(([step, mean, low, high, count]) => ({ step, mean, low, high, count }));
    this.stride = rows.reduce((most, row) => Math.max(most, row[4]), 1);
  }

  /** The newest value, or NaN. */
  get last() {
    return this.points.length ? this.points[this.points.length - 1].mean : NaN;
  }

  /**
   * The value of one step. A step back begins the curve again: another training in the same job.
   * @param {number} step
   * @param {number} value
   */
  add(step, value) {
    if (!Number.isFinite(value)) return;
    if (this.points.length && step <= this.points[this.points.length - 1].step) {
      this.points = [];
      this.stride = 1;
    }
    const last = this.points[this.points.length - 1];
    const point = { step, mean: value, low: value, high: value, count: 1 };
    if (last && last.count < this.stride) join(last, point);
    else this.points.push(point);
    if (this.points.length > this.limit) this.#halve();
  }

  #halve() {
    const left = this.points.filter((_, at) => at % 2 === 0);
    const right = this.points.filter((_, at) => at % 2 === 1);
    right.forEach((point, at) => join(left[at], point));
    this.points = left;
    this.stride *= 2;
  }
}

/**
 * Take the steps of a later point in.
 * @param {Point} point
 * @param {Point} later
 */
function join(point, later) {
  const count = point.count + later.count;
  point.mean += ((later.mean - point.mean) * later.count) / count;
  point.low = Math.min(point.low, later.low);
  point.high = Math.max(point.high, later.high);
  point.step = later.step;
  point.count = count;
}

/**
 * Running mean that forgets: each step counts `keep` times what the next one does. The first values are
 * corrected for what they cannot know, so the curve begins at the data and not at zero. A point of many steps
 * weighs as many.
 * @param {Point[]} points
 * @param {number} keep 0 is no smoothing, towards 1 is more
 * @returns {number[]} one value per point
 */
export function smooth(points, keep) {
  let sum = 0;
  let weight = 0;
  return points.map(({ mean, count }) => {
    const kept = keep ** count;
    sum = kept * sum + (1 - kept) * mean;
    weight = kept * weight + (1 - kept);
    return weight > 0 ? sum / weight : mean;
  });
}

/**
 * The point nearest to a step; -1 of none.
 * @param {Point[]} points in order of their steps
 * @param {number} step
 */
export function nearest(points, step) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].step < step) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && step - points[low - 1].step < points[low].step - step) return low - 1;
  return high < 0 ? -1 : low;
}

/**
 * The range to draw: single spikes of a noisy curve are cut off, so that the rest can be read.
 * @param {number[]} noisy values of which the outer hundredths may leave the picture
 * @param {number[]} whole values that must be inside
 * @param {boolean} [log] only values above 0 can be shown
 * @returns {[number, number]}
 */
export function range(noisy, whole, log = false) {
  const usable = (/** @type {number[]} */ values) =>
    values.filter((one) => Number.isFinite(one) && (!log || one > 0));
  const sorted = usable(noisy).sort((one, other) => one - other);
  const cut = Math.floor(sorted.length / 100);
  const all = [...usable(whole), ...sorted.slice(cut, sorted.length - cut)];
  if (!all.length) return log ? [0.1, 1] : [0, 1];
  let low = all.reduce((one, other) => Math.min(one, other));
  let high = all.reduce((one, other) => Math.max(one, other));
  if (low === high) {
    // A flat curve, e.g. a constant learning rate: in the middle.
    const room = Math.abs(low) * 0.5 || 1;
    [low, high] = [log ? low / 2 : low - room, high + room];
  }
  if (log) return [low / 1.1, high * 1.1];
  const margin = (high - low) * 0.06;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

/**
 * Round numbers in a range, for the lines of an axis.
 * @param {number} low
 * @param {number} high
 * @param {number} about how many
 * @returns {number[]}
 */
export function ticks(low, high, about) {
  const rough = (high - low) / Math.max(1, about);
  if (!(rough > 0) || !Number.isFinite(rough)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((one) => one * power >= rough) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

/**
 * Lines of a logarithmic axis: powers of ten, with 2 and 5 between them where there are few.
 * @param {number} low above 0
 * @param {number} high
 * @returns {number[]}
 */
export function logTicks(low, high) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const between = last - first <= 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let power = first; power <= last; power += 1) {
    for (const one of between) found.push(one * 10 ** power);
  }
  return found.filter((one) => one >= low && one <= high);
}
