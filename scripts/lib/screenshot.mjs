// Starts `relay demo` on free ports, waits for a telling moment, takes the pictures, ends the relay by its pid.
//
// Called by scripts/screenshot; RELAY and CHROMIUM name the programs, the argument is where the pictures go.

import { spawn } from "node:child_process";
import { statSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const { chromium } = createRequire(join(process.cwd(), "crates/relay-server/tests/node/"))("playwright-core");
const folder = process.argv[2];
const LARGEST = 300_000; // bytes: the pictures are part of the repository

const freePort = () =>
  new Promise((found) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => found(port));
    });
  });

/** Waits until the page answers, or the relay has ended. */
async function untilUp(url, relay) {
  for (let tries = 0; tries < 300; tries++) {
    if (relay.exitCode !== null) throw new Error(`relay demo ended with code ${relay.exitCode}`);
    const up = await fetch(url).then((answer) => answer.ok, () => false);
    if (up) return;
    await pause(100);
  }
  throw new Error(`nothing answers at ${url}`);
}

/** A picture should show what the page can: milestones, a silence, an attempt that failed. */
const isTelling = () =>
  ["#active .chips li", "#active [data-quiet]", "#active [data-status=failed]", "#ended .job"].every((what) => document.querySelector(what)) &&
  document.querySelectorAll("#active [data-status=running]").length >= 4;

async function takePictures(url) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
  });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, deviceScaleFactor: 1.5, reducedMotion: "reduce" });
    await page.goto(url);
    // Chance decides when all of it is there at once; after a while any moment will do.
    await page.waitForFunction(isTelling, null, { timeout: 180_000 }).catch(() => console.warn("screenshot: took an ordinary moment"));
    const views = [
      ["demo.png", "light", 1280, 900],
      ["demo-dark.png", "dark", 1280, 900],
      ["demo-phone.png", "light", 390, 844],
    ];
    for (const [name, colorScheme, width, height] of views) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height });
      const path = join(folder, name);
      await page.screenshot({ path });
      const { size } = statSync(path);
      console.log(`${path}: ${Math.round(size / 1000)} kB`);
      if (size > LARGEST) throw new Error(`${path} is too large`);
    }
  } finally {
    await browser.close();
  }
}

// A developer's own settings should not show in the pictures.
const settings = Object.entries(process.env).filter(([key]) => !key.startsWith("RELAY__"));
const [http, admin] = [await freePort(), await freePort()];
const relay = spawn(process.env.RELAY, ["demo"], {
  env: { ...Object.fromEntries(settings), RELAY__HTTP__LISTEN: `127.0.0.1:${http}`, RELAY__ADMIN__LISTEN: `127.0.0.1:${admin}` },
  stdio: ["ignore", "ignore", "inherit"],
});
try {
  await untilUp(`http://127.0.0.1:${http}/`, relay);
  await takePictures(`http://127.0.0.1:${http}/`);
} finally {
  relay.kill("SIGTERM");
  setTimeout(() => relay.kill("SIGKILL"), 20_000).unref(); // a drain may take its time, but not for ever
}
