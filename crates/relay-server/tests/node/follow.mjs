// Follows one topic with a client library that others use, printing each frame as a line, until an ending.
// Usage: node follow.mjs ws|eventsource http://host:port TOPIC
import { EventSource } from "eventsource";
import WebSocket from "ws";

const [library, base, topic] = process.argv.slice(2);
const endings = new Set(["completed", "failed", "cancelled"]);

function tell(text, close) {
  const frame = JSON.parse(text);
  console.log(JSON.stringify(frame));
  if (frame.type === "state" && endings.has(frame.job.status)) close();
}

if (library === "ws") {
  const socket = new WebSocket(`${base.replace("http", "ws")}/v1/ws`);
  socket.on("open", () => socket.send(JSON.stringify({ type: "subscribe", topic })));
  socket.on("message", (data) => tell(data.toString(), () => socket.close(1000)));
  socket.on("close", (code) => process.exit(code === 1000 ? 0 : 1));
  socket.on("error", (error) => console.error(String(error)));
} else {
  const source = new EventSource(`${base}/v1/sse?topic=${encodeURIComponent(topic)}`);
  for (const type of ["subscribed", "state", "milestone", "gap", "server_shutdown"]) {
    source.addEventListener(type, (event) => tell(event.data, () => source.close()));
  }
  source.addEventListener("error", (event) => {
    console.error(`error ${event.code ?? ""} ${event.message ?? ""}`);
    // a refusal is final, a lost connection is tried again by the library itself
    if (source.readyState === EventSource.CLOSED) process.exit(1);
  });
}
