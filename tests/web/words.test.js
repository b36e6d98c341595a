import assert from "node:assert/strict";
import { test } from "node:test";

import { keepOf } from "../../web/dashboard/chart_card.js";
import { bySteps, neighbour } from "../../web/dashboard/gallery.js";
import { linesOf, PLOTS, plotsOf } from "../../web/dashboard/plots.js";
import { Curve } from "../../web/dashboard/curves.js";
import { curveName, duration, short, speed, stageName, timeLeft } from "../../web/dashboard/words.js";

test("numbers are short and keep what matters", () => {
  const cases = /** @type {[number | undefined, string][]} */ ([
    [0.12345, "0.123"],
    [0.00012, "1.2e-4"],
    [1e-4, "1e-4"],
    [0, "0"],
    [12.3456, "12.35"],
    [4321.9, "4322"],
    [-0.5, "-0.5"],
    [2.5e7, "2.5e7"],
    [NaN, "–"],
    [undefined, "–"],
  ]);
  for (const [value, text] of cases) assert.equal(short(value), text);
});

test("times are said in two parts", () => {
  const cases = /** @type {[number | null, string][]} */ ([
    [0.4, "0 s"],
    [59.4, "59 s"],
    [200, "3 min 20 s"],
    [3599.6, "1 h 00 min"],
    [7500, "2 h 05 min"],
    [86399, "1 d 0 h"],
    [3 * 86400 + 4 * 3600, "3 d 4 h"],
    [null, "–"],
  ]);
  for (const [seconds, text] of cases) assert.equal(duration(seconds), text);
});

test("speed turns round where it would be hard to read", () => {
  assert.equal(speed(2.345), "2.35 s/it");
  assert.equal(speed(0.25), "4 it/s");
  assert.equal(speed(0.0313), "31.9 it/s");
  assert.equal(speed(null), "–");
});

test("time left counts down between steps, but not past the step at work", () => {
  const stage = { done: 40, total: 100, pace: 2 };
  assert.equal(timeLeft(stage), 120);
  assert.equal(timeLeft(stage, 1.5), 118.5);
  assert.equal(timeLeft(stage, 30), 118);
  assert.equal(timeLeft({ ...stage, done: 100 }, 30), 0);
});

test("time left is not guessed", () => {
  assert.equal(timeLeft(null), null);
  assert.equal(timeLeft({ done: 1, total: null, pace: 2 }), null);
  assert.equal(timeLeft({ done: 1, total: 10, pace: null }), null);
});

test("metrics and stages have names for people", () => {
  assert.equal(curveName("loss/validation_q0.125"), "validation at 0.125");
  assert.equal(curveName("lr/text_encoder"), "text encoder");
  assert.deepEqual(["train", "latents", "text: llm", "plan"].map(stageName), [
    "Training",
    "Caching latents",
    "Caching text: llm",
    "Plan",
  ]);
});

test("the slider of the smoothing goes from nothing to a thousand steps", () => {
  assert.equal(keepOf(0), 0);
  assert.ok(Math.abs(1 / (1 - keepOf(100)) - 1000) < 20);
});

test("only charts with curves are offered, the loss always", () => {
  assert.deepEqual(
    plotsOf([]).map((plot) => plot.id),
    ["loss"],
  );
  const all = plotsOf(["loss/current", "lr/unet", "grad/norm", "max_norm/keys_scaled"]);
  assert.deepEqual(
    all.map((plot) => plot.id),
    ["loss", "lr", "grad"],
  );
});

test("the loss is drawn raw, smoothed and on held-out items", () => {
  const curves = new Map([
    ["loss/current", new Curve([[1, 0.5, 0.5, 0.5, 1]])],
    ["loss/validation", new Curve([[1, 0.6, 0.6, 0.6, 1]])],
  ]);
  const lines = linesOf(curves, PLOTS[0], 0.9);
  assert.deepEqual(
    lines.map((line) => line.name),
    ["each step", "smoothed", "validation"],
  );
});

/**
 * @param {number} number
 * @param {number} step
 * @param {string} title
 */
const sample = (number, step, title) => ({
  number,
  step,
  title,
  width: 1,
  height: 1,
  details: {},
  clip: false,
});

test("samples are grouped by step, the newest first, and compared along one prompt", () => {
  const samples = [
    sample(0, 50, "a"),
    sample(1, 50, "b"),
    sample(2, 100, "a"),
    sample(3, 100, "b"),
    sample(4, 150, "a"),
  ];
  assert.deepEqual(
    bySteps(samples).map(([step, all]) => [step, all.length]),
    [
      [150, 1],
      [100, 2],
      [50, 2],
    ],
  );
  assert.equal(neighbour(samples, samples[2], 1)?.number, 4);
  assert.equal(neighbour(samples, samples[2], -1)?.number, 0);
  assert.equal(neighbour(samples, samples[4], 1), undefined);
});
