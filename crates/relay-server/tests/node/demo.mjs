// Uses the page of `relay demo` as a person would, in Chromium, with the relay killed and restarted under it.
//
// RELAY and CHROMIUM name the programs. Prints one line a step; exits with 0 only if every step went well.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer } from "node:net";
import { chromium } from "playwright-core";

const SOON = 20_000; // anything that must happen does within this

const freePort = () =>
  new Promise((found) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => found(port));
    });
  });

const [http, admin] = [await freePort(), await freePort()];
const base = `http://127.0.0.1:${http}`;
let relay;

async function startRelay() {
  relay = spawn(process.env.RELAY, ["demo"], {
    env: { ...process.env, RELAY__HTTP__LISTEN: `127.0.0.1:${http}`, RELAY__ADMIN__LISTEN: `127.0.0.1:${admin}` },
    stdio: ["ignore", "ignore", "inherit"],
  });
  const deadline = Date.now() + SOON;
  while (!(await fetch(base).then((answer) => answer.ok, () => false))) {
    assert.equal(relay.exitCode, null, "relay demo ended by itself");
    assert.ok(Date.now() < deadline, "relay demo does not answer");
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

const killRelay = () =>
  new Promise((gone) => {
    relay.once("exit", gone);
    relay.kill("SIGKILL");
  });

async function publish(body) {
  const answer = await fetch(`${base}/v1/jobs/mine?owner=demo`, { method: "POST", body: JSON.stringify(body) });
  assert.equal(answer.status, 202, await answer.text());
}

const step = (name) => console.log(`ok: ${name}`);

await startRelay();
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  page.setDefaultTimeout(SOON);
  const complaints = [];
  page.on("pageerror", (error) => complaints.push(String(error)));
  const elsewhere = [];
  page.on("request", (request) => {
    if (new URL(request.url()).host !== `127.0.0.1:${http}`) elsewhere.push(request.url());
  });

  const linkIs = (state) => page.waitForSelector(`#pill[data-state=${state}]`);
  const updates = () => page.$eval("#updates", (node) => Number(node.textContent.replace(/\D/g, "")));
  const updatesPass = (count) =>
    page.waitForFunction((count) => Number(document.querySelector("#updates").textContent.replace(/\D/g, "")) > count, count);
  const isAlive = async () => updatesPass((await updates()) + 3);
  const progressOf = (title) =>
    page.$$eval(".job", (jobs, title) => jobs.find((job) => job.querySelector("h3").textContent === title)?.querySelector("[role=progressbar]").getAttribute("aria-valuenow"), title);

  await page.goto(base);
  await linkIs("connected");
  await page.waitForFunction(() => document.querySelectorAll("#active .job").length >= 4);
  await isAlive();
  step("bars move");

  const bars = await page.$$eval("#active [role=progressbar]", (all) => all.map((bar) => document.getElementById(bar.getAttribute("aria-labelledby"))?.textContent));
  assert.ok(bars.length && bars.every(Boolean), "each bar has a name for a screen reader");
  step("bars have names");

  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the jobs");
  await page.focus("input[value=websocket]");
  for (const transport of ["sse", "poll", "websocket"]) {
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.$eval("input[name=transport]:checked", (input) => input.value), transport);
    await linkIs("connected");
    await isAlive();
    step(`by keyboard to ${transport}`);
  }

  for (const transport of ["websocket", "sse", "poll"]) {
    await page.check(`input[value=${transport}]`, { force: true });
    await linkIs("connected");
    await publish({ status: "running", progress: 10, meta: { title: `Mine by ${transport}` }, attempt: 1 });
    await page.waitForFunction((title) => [...document.querySelectorAll("#active h3")].some((head) => head.textContent === title), `Mine by ${transport}`);
    assert.equal(await progressOf(`Mine by ${transport}`), "10");
    await killRelay();
    await page.waitForSelector("#pill:not([data-state=connected])");
    await startRelay();
    await linkIs("connected");
    await isAlive();
    step(`restart under ${transport}`);
  }

  await publish({ status: "running", progress: 70, meta: { title: "Mine" } });
  await page.waitForFunction(() => [...document.querySelectorAll("#active h3")].some((head) => head.textContent === "Mine"));
  await publish({ status: "completed", meta: { title: "Mine" } });
  await page.waitForFunction(() => [...document.querySelectorAll(".job[data-status=completed] h3")].some((head) => head.textContent === "Mine"));
  await page.waitForFunction(() => document.querySelector("#live").textContent.includes("Mine"));
  step("an ending is shown and said");

  await page.setViewportSize({ width: 390, height: 844 });
  const width = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(width <= 390, `on a phone the page is ${width} pixels wide`);
  step("fits a phone");

  assert.deepEqual(complaints, []);
  assert.deepEqual(elsewhere, [], "the page asks nobody but the relay");
} finally {
  await browser.close();
  await killRelay();
}
