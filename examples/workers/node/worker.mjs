// Publishes the life of one job to JetStream: progress, a milestone, an ending.
// Usage: NATS_URL=nats://127.0.0.1:4222 node worker.mjs JOB [OWNER]
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

/** One job's line to whoever watches it. */
class Job {
  #jetstream;
  #subject;
  #run = randomUUID(); // another run of the same job must not look like a repeat
  #count = 0;
  #last = 0;

  constructor(js, job, owner = "-") {
    this.#jetstream = js;
    this.#subject = `progress.${owner}.${job}`;
  }

  /** The complete current state; at most ten a second, the others are left out. */
  async state(state) {
    if (Date.now() - this.#last < 100) return;
    this.#last = Date.now();
    await this.#publish("state", { status: "running", ...state });
  }

  /** An event that no later message replaces. */
  async milestone(name, data = {}) {
    await this.#publish(name, data);
  }

  /** The last state. Alone on its subject, kept for a day, and offered until it is stored. */
  async end(status, state) {
    const more = { "Nats-Rollup": "sub", "Nats-TTL": "24h" };
    await this.#publish("state", { status, ...state }, more, Infinity);
  }

  async #publish(what, body, more = {}, patience = 15_000) {
    // the same id at each try: what was stored but not acknowledged is not stored twice
    const msgID = `${this.#run}-${++this.#count}`;
    const h = headers();
    for (const [name, value] of Object.entries(more)) h.set(name, value);
    if (what === "state") body.ts = new Date().toISOString();
    const payload = JSON.stringify(body);
    const giveUp = Date.now() + patience;
    for (let pause = 200; ; pause = Math.min(pause * 2, 3000)) {
      try {
        const options = { msgID, headers: h, timeout: 2000 };
        return await this.#jetstream.publish(`${this.#subject}.${what}`, payload, options);
      } catch (error) {
        if (Date.now() + pause > giveUp) {
          console.error(`gave up on ${what}: ${error}`);
          return;
        }
      }
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }
}

/** Stands for the real work. */
async function work(job) {
  const steps = Number(process.env.STEPS ?? 20);
  for (let step = 1; step <= steps; step++) {
    await sleep(50);
    if (step === Number(process.env.FAIL_AT)) throw new Error(`step ${step} went wrong`);
    await job.state({ current: step, total: steps, unit: "steps", message: `step ${step}` });
    if (step === Math.floor(steps / 2)) await job.milestone("half_way", { step });
  }
  return { steps };
}

const [jobId, owner] = process.argv.slice(2);
if (!jobId) {
  console.error("usage: node worker.mjs JOB [OWNER]");
  process.exit(2);
}
const connection = await connect({
  servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222",
  waitOnFirstConnect: true,
  maxReconnectAttempts: -1,
});
const job = new Job(jetstream(connection), jobId, owner);
try {
  const result = await work(job);
  await job.end("completed", { progress: 100, result });
} catch (error) {
  await job.end("failed", { error: { code: error.name, message: error.message } });
  process.exitCode = 1;
} finally {
  await connection.close();
}
