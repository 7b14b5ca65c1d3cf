// Follows a job in a dialect's own page, in Chromium: the snapshot, progress, a killed relay, backing off, polling,
// the stream again, the ending. Usage: node dialect-pages.mjs DIALECT
//
// RELAY and CHROMIUM name the programs. Prints one line a step; exits with 0 only if every step went well.
//
// The page reaches the relay through a gate of this script's own, which can refuse or hold back streams while it
// lets requests pass: a network that allows HTTP and nothing else, for exactly as long as a step needs it.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHmac, randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { Agent, createServer, request } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const SOON = 30_000; // anything that must happen does within this

const listen = (server) => new Promise((done) => server.listen(0, "127.0.0.1", () => done(server.address().port)));

async function freePort() {
  const server = createTcpServer();
  const port = await listen(server);
  await new Promise((closed) => server.close(closed));
  return port;
}

// What differs from one dialect to the next.
//   refused   how many new streams the gate refuses before it holds the others back
//   waits     what the page has waited for by then, as its document has it
//   back      what brings the page back to its stream, besides a stream that can be had
//   milestone what a worker tells besides, of a new job where one is named, and what the page has seen by the ending
//   word      how the page names a running job; ended: what it shows as the ending, and as the ending by polling
//   settle    after an ending: makes the relay answer once more on the same stream, so that an ending sent twice
//             would have come twice by then
const nextPong = async (page) => {
  const pongs = Number(await page.getAttribute("#link", "data-pongs"));
  await page.waitForFunction((pongs) => Number(document.querySelector("#link").dataset.pongs) > pongs, pongs);
};
const dialects = {
  "file-conversion": {
    refused: Infinity,
    waits: ["1000", "2000", "4000", "8000", "16000"],
    back: (page) => page.reload(),
    word: "processing",
    ended: { completed: "completed: /files/1", failed: "failed: no luck", cancelled: "cancelled: enough" },
    polled: "completed: /files/1",
    settle: (page) => page.waitForSelector("#link[data-state=closed]"),
  },
  "upload-notes": {
    tokens: true,
    refused: 2,
    waits: ["attempt 1", "attempt 2", "attempt 3"],
    word: "in_progress",
    milestone: { name: "notes_chunk", data: { chunk: "two", accumulated: "one two" }, shown: ["one two"] },
    ended: { completed: "completed: n1", failed: "failed: no luck", cancelled: "failed: enough" },
    polled: "completed: n1",
    settle: async (page) => {
      await page.evaluate(() => window.again());
      await page.waitForSelector("#link[data-pongs='1']");
    },
  },
  "media-conversion": {
    refused: 2,
    waits: ["2000", "2600", "3380"],
    word: "processing",
    milestone: { name: "recovery_attempt", data: { action: "retry", message: "again" }, shown: ["attempt: again"] },
    ended: { completed: "completed: /files/1", failed: "failed: no luck", cancelled: "failed: enough" },
    polled: "completed: /files/1",
    settle: nextPong,
  },
  "video-generation": {
    refused: Infinity,
    waits: ["0", "1000", "2000", "4000", "8000", "16000"],
    back: (page) => page.click("#reconnect"),
    word: "processing",
    milestone: { name: "clip_completed", data: { clip_id: "c1", duration: 4.5 }, shown: ["c1: 4.5 s", "processing to completed"] },
    ended: { completed: "completed: /files/1", failed: "failed: no luck", cancelled: "failed: enough" },
    polled: "completed",
    // The endpoint where the other two readings of its document put it.
    reading: { failed: "reading=query", cancelled: "reading=namespace&kind=composition" },
    settle: nextPong,
  },
  "event-dashboard": {
    tokens: true,
    refused: 2,
    waits: [[1000, 2000], [2000, 3000], [4000, 5000]],
    word: "pending",
    milestone: { job: "other", name: "event_deleted", data: {}, shown: ["created: other", "deleted: other"] },
    metrics: "1,0,1,0",
    ended: { completed: "delivered: 100", failed: "failed: 100", cancelled: "failed: 100" },
    polled: "delivered: 100",
    settle: nextPong,
  },
};

const dialect = process.argv[2];
const is = dialects[dialect];
assert.ok(is, `usage: node dialect-pages.mjs ${Object.keys(dialects).join("|")}`);

// The pages, on an origin of their own.
const types = { html: "text/html", js: "text/javascript" };
const site = createServer((asked, answer) => {
  const name = /^\/([a-z.-]+)\.(html|js)(\?|$)/.exec(asked.url);
  const file = name?.[1] === "socket.io" ? "node_modules/socket.io-client/dist/socket.io.js" : `pages/${name?.[1]}.${name?.[2]}`;
  if (!name) return answer.writeHead(404).end();
  answer.writeHead(200, { "content-type": types[name[2]] }).end(readFileSync(new URL(file, import.meta.url)));
});
const origin = `http://127.0.0.1:${await listen(site)}`;

// The relay.
const [http, admin] = [await freePort(), await freePort()];
const directory = mkdtempSync(join(tmpdir(), "dialect-pages-"));
const key = randomBytes(32).toString("hex");
let relay;

const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("RELAY__")));
Object.assign(environment, {
  RELAY__HTTP__LISTEN: `127.0.0.1:${http}`,
  RELAY__ADMIN__LISTEN: `127.0.0.1:${admin}`,
  RELAY__HTTP__ALLOWED_ORIGINS: origin,
  RELAY__DIALECTS__ENABLED: dialect,
  RELAY__HISTORY__FILE: join(directory, "history"), // or a killed relay would not know its jobs
  ...(is.tokens && { RELAY__AUTH__MODE: "jwt", RELAY__AUTH__KEY: key }),
});

function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const text = `${part({ alg: "HS256", typ: "JWT" })}.${part({ exp: Math.floor(Date.now() / 1000) + 3600, ...claims })}`;
  return `${text}.${createHmac("sha256", key).update(text).digest("base64url")}`;
}

async function startRelay() {
  relay = spawn(process.env.RELAY, ["serve"], { cwd: directory, env: environment, stdio: ["ignore", "ignore", "inherit"] });
  const deadline = Date.now() + SOON;
  while (!(await fetch(`http://127.0.0.1:${admin}/readyz`).then((answer) => answer.ok, () => false))) {
    assert.equal(relay.exitCode, null, "the relay ended by itself");
    assert.ok(Date.now() < deadline, "the relay does not become ready");
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

const killRelay = () =>
  new Promise((gone) => {
    if (relay.exitCode !== null || relay.signalCode !== null) return gone();
    relay.once("exit", gone);
    relay.kill("SIGKILL");
  });

// A worker.
const worker = { authorization: `Bearer ${token({ sub: "worker", publish: ["*"] })}` };
async function publish(path, body) {
  const url = `http://127.0.0.1:${http}/v1/jobs/${path}?owner=alice`;
  const answer = await fetch(url, { method: "POST", headers: is.tokens ? worker : {}, body: JSON.stringify(body) });
  assert.equal(answer.status, 202, await answer.text());
}
// The progress a page shows; the dashboard, which has none, shows the latency.
const running = (job, value, more) => publish(job, { status: "running", progress: value, delivery_latency_ms: value, ...more });
const end = (job, status, more) =>
  publish(job, {
    status,
    delivery_latency_ms: 100,
    ...{
      completed: { result_url: "/files/1", result: { noteId: "n1" } },
      failed: { error: { code: "LUCK", message: "no luck" } },
      cancelled: { message: "enough" },
    }[status],
    ...more,
  });

// The gate.
const gate = { refuses: 0, holds: false, held: new Set() };
const isStream = (asked) => asked.headers.upgrade || asked.url.includes("EIO=");
const agent = new Agent({ keepAlive: false });
const door = createServer((asked, answer) => {
  if (isStream(asked) && (gate.refuses > 0 || gate.holds)) {
    gate.refuses -= 1;
    return answer.destroy();
  }
  const { method, url: path, headers } = asked;
  const onward = request({ host: "127.0.0.1", port: http, method, path, headers, agent }, (got) => {
    answer.writeHead(got.statusCode, got.rawHeaders);
    got.on("error", () => answer.destroy());
    got.pipe(answer);
  });
  onward.on("error", () => answer.destroy());
  answer.on("close", () => onward.destroy());
  asked.pipe(onward);
});
door.on("upgrade", (asked, socket, head) => {
  socket.on("error", () => socket.destroy());
  if (gate.refuses > 0) {
    gate.refuses -= 1;
    return socket.end("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
  }
  const pass = () => {
    const lines = [`GET ${asked.url} HTTP/1.1`];
    for (let at = 0; at < asked.rawHeaders.length; at += 2) lines.push(`${asked.rawHeaders[at]}: ${asked.rawHeaders[at + 1]}`);
    const onward = connect(http, "127.0.0.1", () => {
      onward.write(`${lines.join("\r\n")}\r\n\r\n`);
      onward.write(head);
      onward.pipe(socket).pipe(onward);
    });
    onward.on("error", () => socket.destroy());
    onward.on("close", () => socket.destroy());
    socket.on("close", () => onward.destroy());
  };
  if (!gate.holds) return pass();
  gate.held.add(pass);
  socket.on("close", () => gate.held.delete(pass));
});
const api = `http://127.0.0.1:${await listen(door)}`;

function shut(refuses) {
  Object.assign(gate, { refuses, holds: true });
}
function open() {
  Object.assign(gate, { refuses: 0, holds: false });
  for (const pass of gate.held) pass();
  gate.held.clear();
}

process.on("exit", () => relay?.kill("SIGKILL"));

const step = (name) => console.log(`ok: ${dialect}: ${name}`);

await startRelay();
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
});
const context = await browser.newContext();
const complaints = [];
try {
  context.setDefaultTimeout(SOON);
  context.on("weberror", (error) => complaints.push(error.error().stack));
  const alice = token({ sub: "alice" });
  // for those who are known by a cookie; httpOnly, as a page must not be able to read it
  await context.addCookies([{ name: "access_token", value: alice, domain: "127.0.0.1", path: "/", httpOnly: true, sameSite: "Lax" }]);

  const visit = async (job, more = "") => {
    const page = await context.newPage();
    await page.goto(`${origin}/${dialect}.html?job=${job}&api=${encodeURIComponent(api)}&token=${is.tokens ? alice : ""}&${more}`);
    return page;
  };
  const linkIs = (page, state) => page.waitForSelector(`#link[data-state=${state}]`);
  const polls = (page, yes) => page.waitForSelector(`#link[data-polling=${yes}]`);
  const shows = async (page, value) => {
    const shown = ([word, value]) => {
      const { status, value: is } = document.querySelector("#job").dataset;
      return is === value && (word === null || status === word);
    };
    await page.waitForFunction(shown, [is.word, String(value)]);
  };
  const list = (page, id) => page.$$eval(`#${id} li`, (all) => all.map((one) => one.textContent));
  const listed = (page, id, text) =>
    page.waitForFunction(([id, text]) => [...document.querySelectorAll(`#${id} li`)].some((one) => one.textContent === text), [id, text]);

  {
    await running("main", 10);
    const page = await visit("main");
    await linkIs(page, "connected");
    await shows(page, 10);
    step("a snapshot at once");
    await running("main", 20);
    await shows(page, 20);
    await running("main", 30);
    await shows(page, 30);
    assert.deepEqual(await list(page, "waits"), []);
    step("progress moves");

    shut(is.refused);
    await killRelay();
    await page.waitForFunction((count) => document.querySelectorAll("#waits li").length >= count, is.waits.length);
    await linkIs(page, is.refused === Infinity ? "disconnected" : "reconnecting");
    const waits = await list(page, "waits");
    for (const [at, expected] of is.waits.entries()) {
      const wait = waits[at];
      if (Array.isArray(expected)) assert.ok(expected[0] <= Number(wait) && Number(wait) < expected[1], `wait ${at} is ${wait}`);
      else assert.equal(wait, expected);
    }
    step("the relay is killed, the page backs off");

    await polls(page, true);
    await startRelay();
    await running("main", 50);
    await shows(page, 50);
    await running("main", 60);
    await shows(page, 60);
    await polls(page, true);
    step("it polls, and polling moves the page");

    open();
    await is.back?.(page);
    await linkIs(page, "connected");
    await polls(page, false);
    await running("main", 70);
    await shows(page, 70);
    step("it is back at its stream");

    if (is.milestone) {
      const { job, name, data } = is.milestone;
      if (job) await running(job, 1);
      await publish(`${job ?? "main"}/milestones/${name}`, data);
    }
    await end("main", "completed");
    await listed(page, "endings", is.ended.completed);
    await is.settle(page);
    assert.deepEqual(await list(page, "endings"), [is.ended.completed]);
    assert.deepEqual(await list(page, "milestones"), is.milestone?.shown ?? []);
    if (is.metrics) await page.waitForSelector(`#link[data-metrics='${is.metrics}']`);
    await page.close();
    step("the ending, once");
  }

  for (const status of ["failed", "cancelled"]) {
    const reading = is.reading?.[status];
    const kind = reading?.includes("composition") ? { kind: "composition" } : {};
    await running(status, 10, kind);
    const page = await visit(status, reading);
    await linkIs(page, "connected");
    await page.waitForSelector("#job[data-value='10']");
    await end(status, status, kind);
    await listed(page, "endings", is.ended[status]);
    await is.settle(page);
    assert.deepEqual(await list(page, "endings"), [is.ended[status]]);
    await page.close();
    step(`${status}, once`);
  }

  {
    shut(Infinity);
    await running("polled", 10);
    const page = await visit("polled");
    await polls(page, true);
    await shows(page, 10);
    await end("polled", "completed");
    await listed(page, "endings", is.polled);
    await polls(page, false);
    assert.deepEqual(await list(page, "endings"), [is.polled]);
    await page.close();
    step("an ending by polling alone");
  }

  assert.deepEqual(complaints, []);
} catch (error) {
  for (const page of context.pages()) console.error(await page.content().catch(String));
  console.error(complaints.join("\n"));
  throw error;
} finally {
  await browser.close();
  await killRelay();
  door.close();
  site.close();
  rmSync(directory, { recursive: true, force: true });
}
