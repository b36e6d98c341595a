import assert from "node:assert/strict";
import { test } from "node:test";

import { Curve, logTicks, nearest, range, smooth, ticks } from "../../web/dashboard/curves.js";

/**
 * @param {number} steps
 * @param {(step: number) => number} value
 * @param {number} [limit]
 */
function curveOf(steps, value, limit) {
  const curve = new Curve([], limit);
  for (let step = 1; step <= steps; step += 1) curve.add(step, value(step));
  return curve;
}

test("a short curve keeps every step", () => {
  const curve = curveOf(5, (step) => step / 10);
  assert.deepEqual(
    curve.points.map((point) => [point.step, point.mean, point.count]),
    [1, 2, 3, 4, 5].map((step) => [step, step / 10, 1]),
  );
});

test("a long curve stays small and loses neither its ends nor its extremes nor its mean", () => {
  const curve = curveOf(100_000, (step) => (step === 777 ? 50 : Math.sin(step)), 100);
  assert.ok(curve.points.length <= 100 && curve.points.length > 40, `${curve.points.length}`);
  assert.equal(curve.points.at(-1)?.step, 100_000);
  assert.equal(Math.max(...curve.points.map((point) => point.high)), 50);
  const steps = curve.points.reduce((sum, point) => sum + point.count, 0);
  assert.equal(steps, 100_000);
  const mean = curve.points.reduce((sum, point) => sum + point.mean * point.count, 0) / steps;
  let expected = 50 - Math.sin(777);
  for (let step = 1; step <= 100_000; step += 1) expected += Math.sin(step);
  assert.ok(Math.abs(mean - expected / 100_000) < 1e-9);
});

test("a curve goes on from what the server sent as if it had been there from the start", () => {
  const whole = curveOf(1000, Math.cos, 64);
  const start = curveOf(600, Math.cos, 64);
  const rows = start.points.map(({ step, mean, low, high, count }) => [step, mean, low, high, count]);
  const later = new Curve(rows, 64);
  for (let step = 601; step <= 1000; step += 1) later.add(step, Math.cos(step));
  assert.deepEqual(later.points, whole.points);
});

test("a step back begins the curve again, and numbers that are none are left out", () => {
  const curve = curveOf(10, () => 1);
  curve.add(11, NaN);
  curve.add(12, Infinity);
  assert.equal(curve.points.length, 10);
  curve.add(3, 2);
  assert.deepEqual(
    curve.points.map((point) => point.step),
    [3],
  );
});

test("smoothing by nothing changes nothing, and a constant stays what it is", () => {
  const noisy = curveOf(50, Math.sin).points;
  assert.deepEqual(
    smooth(noisy, 0),
    noisy.map((point) => point.mean),
  );
  for (const value of smooth(curveOf(50, () => 0.3).points, 0.99)) assert.ok(Math.abs(value - 0.3) < 1e-12);
});

test("the smoothed curve is the mean of what came before, weighted by how long ago", () => {
  const points = curveOf(4, (step) => step).points;
  const weights = [0.125, 0.25, 0.5, 1];
  const mean = weights.reduce((sum, weight, at) => sum + weight * (at + 1), 0) / 1.875;
  assert.ok(Math.abs(smooth(points, 0.5)[3] - mean) < 1e-12);
});

test("a point of several steps weighs as many", () => {
  const apart = smooth(
    [1, 1, 1, 5].map((mean, at) => ({ step: at + 1, mean, low: mean, high: mean, count: 1 })),
    0.7,
  );
  const joined = smooth(
    [
      { step: 3, mean: 1, low: 1, high: 1, count: 3 },
      { step: 4, mean: 5, low: 5, high: 5, count: 1 },
    ],
    0.7,
  );
  assert.ok(Math.abs(apart[3] - joined[1]) < 1e-12);
});

test("the nearest point is found", () => {
  const points = [10, 20, 30, 100].map((step) => ({ step, mean: 0, low: 0, high: 0, count: 1 }));
  const found = [0, 14, 16, 26, 64, 66, 999].map((step) => nearest(points, step));
  assert.deepEqual(found, [0, 0, 1, 2, 2, 3, 3]);
  assert.equal(nearest([], 5), -1);
});

test("single spikes leave the picture, the smoothed curve and the validation never", () => {
  const noisy = Array.from({ length: 300 }, (_, at) => (at === 5 ? 1000 : 1 + (at % 10) / 10));
  const [low, high] = range(noisy, [2.5]);
  assert.ok(high > 2.5 && high < 3 && low < 1 && low >= 0);
  assert.ok(range(noisy, [40])[1] > 40);
});

test("there is a range for nothing, for one value and for a logarithm", () => {
  assert.deepEqual(range([], []), [0, 1]);
  const [low, high] = range([1e-4, 1e-4], []);
  assert.ok(low < 1e-4 && high > 1e-4);
  const [least, most] = range([0, -1, 0.01, 1], [], true);
  assert.ok(least > 0 && least < 0.01 && most > 1);
});

test("axis marks are round numbers inside the range", () => {
  assert.deepEqual(ticks(0, 10, 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(
    ticks(0.07, 0.22, 4).map((one) => Number(one.toFixed(3))),
    [0.1, 0.15, 0.2],
  );
  assert.deepEqual(ticks(1, 1, 4), []);
  assert.deepEqual(
    logTicks(0.01, 1).map((one) => Number(one.toPrecision(3))),
    [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1],
  );
});
