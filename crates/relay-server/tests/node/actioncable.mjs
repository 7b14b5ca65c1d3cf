// Follows jobs with the ActionCable library of npm as its page shows it, printing what happens to it, one JSON line
// each, until it is killed; in Node, or in Chromium where CHROMIUM names the program.
// Usage: node actioncable.mjs ws://host:port/cable '[{"channel":…,"id":…},…]'
import { readFileSync } from "node:fs";
import { follow } from "./actioncable-follow.mjs";

const [url, channels] = process.argv.slice(2);

async function inNode() {
  const { default: WebSocket } = await import("ws");
  // What the library wants of a browser.
  Object.assign(globalThis, {
    self: globalThis,
    WebSocket,
    document: { visibilityState: "visible" },
    addEventListener: () => {},
    removeEventListener: () => {},
  });
  const { default: ActionCable } = await import("@rails/actioncable");
  follow(ActionCable, url, JSON.parse(channels), (line) => console.log(JSON.stringify(line)));
}

async function inChromium() {
  const { chromium } = await import("playwright-core");
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    // The page comes from nowhere, which is not a place from which a browser lets pages reach its own machine.
    args: ["--disable-features=LocalNetworkAccessChecks", "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"],
  });
  const page = await browser.newPage();
  page.on("console", (message) => console.log(message.text()));
  // A page of the relay's own origin, which the relay does not have.
  const address = new URL("/page", url.replace("ws", "http")).href;
  await page.route(address, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  await page.goto(address);
  const library = new URL("node_modules/@rails/actioncable/app/assets/javascripts/actioncable.js", import.meta.url);
  await page.addScriptTag({ content: readFileSync(library, "utf8") });
  await page.addScriptTag({ content: `window.follow = ${follow}` });
  const begin = ([url, channels]) => window.follow(window.ActionCable, url, channels, (line) => console.log(JSON.stringify(line)));
  await page.evaluate(begin, [url, JSON.parse(channels)]);
}

await (process.env.CHROMIUM ? inChromium() : inNode());
