import assert from "node:assert/strict";
import { test } from "node:test";

import { Jobs } from "../../web/dashboard/jobs.js";

/**
 * @param {number} update
 * @param {object} [more]
 */
const summary = (update, more = {}) => ({
  id: "j",
  node: "7",
  prompt_id: "",
  name: "lora",
  state: "running",
  message: "",
  started: 100,
  ended: 0,
  now: 110,
  commands: ["save"],
  asked: [],
  update,
  stage: null,
  latest: {},
  ...more,
});

/**
 * @param {number} update
 * @param {[number, number][]} points
 * @returns {import("../../web/dashboard/jobs.js").Update}
 */
const update = (update, points) => ({
  job: summary(update),
  points: points.map(([step, loss]) => [step, { "loss/current": loss }]),
});

/** A server of one job that counts its requests; `answers` may be changed. */
function server() {
  const asked = /** @type {string[]} */ ([]);
  const answers = /** @type {Record<string, any>} */ ({
    "/musubi/jobs": { jobs: [summary(3)] },
    "/musubi/jobs/j": {
      ...summary(3),
      curves: { "loss/current": [[9, 0.5, 0.4, 0.6, 9]] },
      samples: [],
      lines: [],
      files: [],
    },
  });
  /** @type {import("../../web/dashboard/jobs.js").Fetch} */
  const fetch = async (path) => {
    asked.push(path);
    return path in answers ? Response.json(answers[path]) : Response.json({ error: "no" }, { status: 404 });
  };
  return { asked, answers, fetch };
}

/** @param {Jobs} jobs */
const steps = (jobs) =>
  jobs.jobs
    .get("j")
    ?.curves.get("loss/current")
    ?.points.map((point) => point.step) ?? [];

test("a page that comes late loads the job, then follows its updates", async () => {
  const { asked, fetch } = server();
  const jobs = new Jobs(fetch);
  await jobs.refresh();
  await jobs.load("j");
  jobs.update(update(4, [[10, 0.5]]));
  assert.deepEqual(steps(jobs), [9, 10]);
  await jobs.load("j");
  assert.deepEqual(asked, ["/musubi/jobs", "/musubi/jobs/j"]);
});

test("a job that is seen from its beginning needs no loading", async () => {
  const { asked, fetch } = server();
  const jobs = new Jobs(fetch);
  jobs.update(update(1, []));
  jobs.update(update(2, [[1, 0.7]]));
  await jobs.load("j");
  assert.deepEqual(steps(jobs), [1]);
  assert.deepEqual(asked, []);
});

test("updates that are in the answer already are not counted twice", async () => {
  const jobs = new Jobs(server().fetch);
  await jobs.refresh();
  const loading = jobs.load("j");
  jobs.update(update(3, [[9, 0.9]]));
  jobs.update(update(4, [[10, 0.5]]));
  await loading;
  assert.deepEqual(steps(jobs), [9, 10]);
});

test("a lost update is noticed and the job is loaded again", async () => {
  const { asked, answers, fetch } = server();
  const jobs = new Jobs(fetch);
  await jobs.refresh();
  await jobs.load("j");
  answers["/musubi/jobs/j"] = { ...answers["/musubi/jobs/j"], update: 6 };
  jobs.update(update(6, [[20, 0.5]]));
  assert.equal(jobs.jobs.get("j")?.loaded, false);
  await jobs.load("j");
  assert.equal(jobs.jobs.get("j")?.loaded, true);
  assert.equal(asked.filter((path) => path === "/musubi/jobs/j").length, 2);
});

test("a reconnection drops what the server forgot and loads what went on", async () => {
  const { answers, fetch } = server();
  const jobs = new Jobs(fetch);
  await jobs.refresh();
  await jobs.load("j");
  answers["/musubi/jobs"] = { jobs: [summary(8)] };
  await jobs.refresh();
  assert.equal(jobs.jobs.get("j")?.loaded, false);
  answers["/musubi/jobs"] = { jobs: [] };
  await jobs.refresh();
  assert.equal(jobs.jobs.size, 0);
});

test("a refusal of the server is handed on in its own words", async () => {
  const jobs = new Jobs(async () => Response.json({ error: "The job is over." }, { status: 409 }));
  assert.equal(await jobs.command("j", "save"), "The job is over.");
  const away = new Jobs(async () => {
    throw new TypeError("fetch failed");
  });
  assert.match(await away.command("j", "save"), /cannot be reached/);
  await away.refresh();
  assert.equal(away.reached, false);
});

test("time passed follows the server's clock, and stands still at the end", async () => {
  const { answers, fetch } = server();
  const jobs = new Jobs(fetch);
  await jobs.refresh();
  const job = jobs.jobs.get("j");
  assert.equal(job?.elapsed(job.received + 5), 15);
  answers["/musubi/jobs/j"] = { ...answers["/musubi/jobs/j"], state: "finished", ended: 130 };
  await jobs.load("j");
  assert.equal(job?.elapsed(1e12), 30);
});

test("lists stay bounded on a page that is open for days", () => {
  const jobs = new Jobs(server().fetch);
  for (let number = 1; number <= 1000; number += 1) {
    jobs.update({ job: summary(number), lines: [{ kind: "note", text: String(number), time: 0 }] });
  }
  assert.equal(jobs.jobs.get("j")?.lines.length, 100);
  assert.equal(jobs.jobs.get("j")?.lines.at(-1)?.text, "1000");
});
