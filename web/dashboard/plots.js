// Which curves of a job belong into one chart, and how they look there. Pure.

import { smooth } from "./curves.js";
import { curveName } from "./words.js";

const COLOURS = ["--musubi-first", "--musubi-second", "--musubi-third", "--musubi-fourth"];

/**
 * @typedef {{id: string, title: string, prefix: string}} Plot
 * @typedef {import("./chart.js").Line} Line
 */

/** @type {Plot[]} */
export const PLOTS = [
  { id: "loss", title: "Loss", prefix: "loss/" },
  { id: "lr", title: "LR", prefix: "lr/" },
  { id: "time", title: "Time", prefix: "time/" },
  { id: "memory", title: "Memory", prefix: "memory/" },
  { id: "grad", title: "Gradient", prefix: "grad/" },
];

/**
 * The charts that a job has curves for. The loss is always one of them.
 * @param {Iterable<string>} metrics
 */
export function plotsOf(metrics) {
  const names = [...metrics];
  return PLOTS.filter(({ id, prefix }) => id === "loss" || names.some((name) => name.startsWith(prefix)));
}

/**
 * The lines of one chart: of the loss each step, smoothed, and the validation; of others each curve, at most
 * as many as there are colours.
 * @param {Map<string, import("./curves.js").Curve>} curves
 * @param {Plot} plot
 * @param {number} keep how much to smooth the loss
 * @returns {Line[]}
 */
export function linesOf(curves, plot, keep) {
  if (plot.id === "loss") return lossLines(curves, keep);
  const names = [...curves.keys()].filter((name) => name.startsWith(plot.prefix)).sort();
  return names.slice(0, COLOURS.length).map((name, at) => {
    const points = curves.get(name)?.points ?? [];
    const values = points.map((point) => point.mean);
    return { name: curveName(name), points, values, colour: COLOURS[at], noisy: true };
  });
}

/**
 * @param {Map<string, import("./curves.js").Curve>} curves
 * @param {number} keep
 * @returns {Line[]}
 */
function lossLines(curves, keep) {
  const raw = curves.get("loss/current")?.points ?? [];
  const measured = curves.get("loss/validation")?.points ?? [];
  const values = raw.map((point) => point.mean);
  /** @type {Line[]} */
  const lines = [
    { name: "each step", points: raw, values, colour: COLOURS[0], faint: true, noisy: true },
    { name: "smoothed", points: raw, values: smooth(raw, keep), colour: COLOURS[0] },
  ];
  if (measured.length) {
    const found = measured.map((point) => point.mean);
    lines.push({
      name: "validation",
      points: measured,
      values: found,
      colour: COLOURS[1],
      dots: measured.length < 40,
    });
  }
  return lines;
}
