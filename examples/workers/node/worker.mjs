// Publishes the life of one job to JetStream: progress, a milestone, an ending.
// Usage: NATS_URL=nats://127.0.0.1:4222 node worker.mjs JOB [OWNER [ATTEMPT]]
// Credentials: NATS_USER and NATS_PASSWORD, or NATS_TOKEN, NATS_CREDS (a file) or NATS_NKEY (a file).
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { JetStreamApiError, jetstream } from "@nats-io/jetstream";
import {
  connect, credsAuthenticator, headers, nkeyAuthenticator, tokenAuthenticator, usernamePasswordAuthenticator,
} from "@nats-io/transport-node";

// How a stream for one owner answers an ending: it has no roll-ups and no lifetimes, and needs none.
const NO_ROLLUP = new Set([10111, 10166]);

/** One job's line to whoever watches it. */
class Job {
  #connection;
  #jetstream;
  #subject;
  #attempt;
  #ids; // nobody else's, nor another run's: whoever uses an id first makes the next with that id a repeat
  #count = 0;
  #latest; // the state that waits to be published
  #sender;
  #ended = false;
  #denied = ""; // what NATS has said that this user may not do

  /** A job that has ended begins anew with a higher attempt. */
  constructor(connection, job, owner = "-", attempt = 1) {
    this.#connection = connection;
    this.#jetstream = jetstream(connection);
    this.#subject = `progress.${owner}.${job}`;
    this.#ids = `${owner}.${job}.${randomUUID()}`;
    this.#attempt = attempt;
    this.#listen();
  }

  /** The complete current state. At most ten a second are published, and always the last one. */
  state(state) {
    if (this.#ended) return;
    this.#latest = this.#encode({ status: "running", ...state });
    this.#sender ??= this.#send();
  }

  /** An event that no later message replaces. States from before it are published first. */
  async milestone(name, data = {}) {
    await this.#sender;
    try {
      await this.#publish(name, JSON.stringify(data));
    } catch (error) {
      console.error(`the milestone ${name} is not told: ${error}`);
    }
  }

  /**
   * The last state. Alone on its subject, kept for a day, and offered until it is stored, for ten minutes.
   * Throws what is wrong if it cannot be stored.
   */
  async end(status, state) {
    const payload = this.#encode({ status, ...state });
    this.#ended = true;
    this.#latest = undefined;
    await this.#sender;
    try {
      await this.#publish("state", payload, { "Nats-Rollup": "sub", "Nats-TTL": "24h" }, 600_000);
    } catch (error) {
      if (!NO_ROLLUP.has(error.code)) throw error;
      await this.#publish("state", payload, {}, 600_000);
    }
  }

  // here and not later, so that what JSON cannot express is an error where it was made
  #encode(state) {
    return JSON.stringify({ ...state, attempt: this.#attempt, ts: new Date().toISOString() });
  }

  async #send() {
    while (this.#latest !== undefined) {
      const latest = this.#latest;
      this.#latest = undefined;
      try {
        await this.#publish("state", latest);
      } catch (error) {
        console.error(`a state is not told: ${error}`);
      }
      await sleep(100);
    }
    this.#sender = undefined;
  }

  async #publish(what, payload, more = {}, patience = 15_000) {
    const subject = `${this.#subject}.${what}`;
    // the same id at each try: what was stored but not acknowledged is not stored twice
    const msgID = `${this.#ids}.${++this.#count}`;
    const h = headers();
    for (const [name, value] of Object.entries(more)) h.set(name, value);
    const giveUp = Date.now() + patience;
    for (let pause = 200; ; pause = Math.min(pause * 2, 3000)) {
      try {
        return await this.#jetstream.publish(subject, payload, { msgID, headers: h, timeout: 2000 });
      } catch (error) {
        if (this.#denied.includes(`"${subject}"`)) throw new Error(this.#denied, { cause: error });
        if (Date.now() + pause > giveUp || this.#isFinal(error)) throw error;
      }
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }

  /** Whether the same message will be rejected again, however often it is sent. */
  #isFinal(error) {
    const status = error instanceof JetStreamApiError ? error.status : 0;
    const final = (status >= 400 && status < 500) || NO_ROLLUP.has(error.code);
    return final || error.name === "InvalidArgumentError" || this.#connection.isClosed();
  }

  // NATS does not answer what a user may not publish; it says so on the side
  async #listen() {
    for await (const { type, error } of this.#connection.status()) {
      if (type !== "error") continue;
      console.error(`nats: ${error.message}`);
      if (error.name === "PermissionViolationError") this.#denied = error.message;
    }
  }
}

/** Stands for the real work; ends early when the signal says so. */
async function work(job, signal) {
  const steps = Number(process.env.STEPS ?? 20);
  for (let step = 1; step <= steps; step++) {
    await sleep(50, undefined, { signal });
    if (step === Number(process.env.FAIL_AT)) throw new Error(`step ${step} went wrong`);
    job.state({ current: step, total: steps, unit: "steps", message: `step ${step}` });
    if (step === Math.floor(steps / 2)) await job.milestone("half_way", { step });
  }
  return { steps };
}

/** How to log in to NATS, from the variables that the nats command reads too. */
function authenticator({ NATS_USER, NATS_PASSWORD, NATS_TOKEN, NATS_CREDS, NATS_NKEY }) {
  const seed = (file) => new TextEncoder().encode(readFileSync(file, "utf8").trim());
  if (NATS_USER) return usernamePasswordAuthenticator(NATS_USER, NATS_PASSWORD);
  if (NATS_TOKEN) return tokenAuthenticator(NATS_TOKEN);
  if (NATS_CREDS) return credsAuthenticator(readFileSync(NATS_CREDS));
  if (NATS_NKEY) return nkeyAuthenticator(seed(NATS_NKEY));
  return undefined;
}

const [jobId, owner, attempt] = process.argv.slice(2);
if (!jobId) {
  console.error("usage: node worker.mjs JOB [OWNER [ATTEMPT]]");
  process.exit(2);
}
const connection = await connect({
  servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222",
  authenticator: authenticator(process.env),
  waitOnFirstConnect: true,
  maxReconnectAttempts: -1,
});
const job = new Job(connection, jobId, owner, Number(attempt ?? 1));
// Ctrl-C, and what a supervisor sends before it kills: the work ends, and the job with it; the second time at once
const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => stop.abort());

const failed = (error) => ["failed", { error: { code: error.name, message: error.message.slice(0, 1000) } }];
let ending;
try {
  ending = ["completed", { progress: 100, result: await work(job, stop.signal) }];
} catch (error) {
  if (!stop.signal.aborted) console.error(error);
  ending = stop.signal.aborted ? ["cancelled", { message: "the worker was stopped" }] : failed(error);
}
try {
  await job.end(...ending);
} catch (error) {
  // what JSON cannot express, or NATS does not take, ends the job too
  console.error(error);
  ending = failed(error);
  await job.end(...ending);
} finally {
  await connection.close();
}
process.exitCode = { completed: 0, failed: 1, cancelled: 130 }[ending[0]];
