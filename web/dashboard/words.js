// Numbers and times as people read them. Pure.

/**
 * A number in about four figures: 0.0123, 1.5e-4, 12.3, 420.
 * @param {number | null | undefined} value
 */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e6)
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  if (size >= 1000) return String(Math.round(value));
  return String(Number(value.toPrecision(size < 1 ? 3 : 4)));
}

/**
 * Seconds as a person would say them: 8 s, 3 min 20 s, 2 h 05 min, 3 d 4 h.
 * @param {number | null | undefined} seconds
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const two = (/** @type {number} */ number) => String(number).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  const hours = Math.round(whole / 3600);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * The speed, the way round in which it is a readable number.
 * @param {number | null | undefined} pace seconds per step
 */
export function speed(pace) {
  if (!pace || !Number.isFinite(pace)) return "–";
  return pace >= 1 ? `${pace.toFixed(2)} s/it` : `${Number((1 / pace).toPrecision(3))} it/s`;
}

/**
 * Seconds until a stage is done. `since` is how long ago `done` was counted: the clock runs on between two
 * steps, but not past the step that is being worked on.
 * @param {{done: number, total: number | null, pace: number | null} | null} stage
 * @param {number} [since] seconds
 * @returns {number | null} null when it cannot be known
 */
export function timeLeft(stage, since = 0) {
  if (!stage || stage.total === null || stage.pace === null) return null;
  const left = Math.max(0, stage.total - stage.done);
  if (left === 0) return 0;
  return left * stage.pace - Math.min(since, stage.pace);
}

/**
 * The curve that stands for a name of a metric, for people: "loss/validation_q0.125" -> "validation at 0.125".
 * @param {string} metric
 */
export function curveName(metric) {
  const known = /** @type {Record<string, string>} */ ({
    "loss/current": "loss",
    "loss/average": "mean of an epoch",
    "loss/validation": "validation",
    "time/step": "seconds",
    "memory/peak_gb": "peak",
    "grad/norm": "norm",
  });
  if (metric in known) return known[metric];
  const noise = /^loss\/validation_q([\d.]+)$/.exec(metric);
  if (noise) return `validation at ${noise[1]}`;
  return metric.replace(/^[^/]*\//, "").replaceAll("_", " ");
}

/**
 * A stage of a job for people; stages that have no other words are shown as they are.
 * @param {string} stage
 */
export function stageName(stage) {
  if (stage === "train") return "Training";
  if (stage === "latents" || stage.startsWith("text")) return `Caching ${stage}`;
  return stage.charAt(0).toUpperCase() + stage.slice(1);
}

/** What the states of a job are called. */
export const STATES = /** @type {Record<string, string>} */ ({
  running: "Running",
  finished: "Finished",
  stopped: "Stopped, kept",
  cancelled: "Cancelled, kept",
  failed: "Failed",
});
