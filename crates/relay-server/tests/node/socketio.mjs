// A Socket.IO client as the package's page shows it, printing what happens to it, one JSON line each.
// Usage: node socketio.mjs 4.7|4.8 websocket|polling|upgrade URL '{"options":{…},"emit":[["event",argument],…]}'
// What is in "emit" is sent on every connect; "ack" lines are its answers. It ends when it is told to on stdin.
import { io as io47 } from "socket.io-client-4.7";
import { io as io48 } from "socket.io-client";

const [version, transports, url, script] = process.argv.slice(2);
const { options = {}, emit = [], acks = true } = JSON.parse(script ?? "{}");
const say = (line) => console.log(JSON.stringify(line));

const socket = { 4.7: io47, 4.8: io48 }[version](url, {
  transports: { websocket: ["websocket"], polling: ["polling"], upgrade: ["polling", "websocket"] }[transports],
  reconnectionDelay: 100,
  reconnectionDelayMax: 500,
  ...options,
});
socket.on("connect", () => {
  const engine = socket.io.engine;
  say({ is: "connect", transport: engine.transport.name, id: socket.id });
  engine.on("upgrade", (transport) => say({ is: "upgrade", transport: transport.name }));
  for (const event of emit) {
    if (acks) socket.emit(...event, (answer) => say({ is: "ack", of: event[0], answer }));
    else socket.emit(...event);
  }
});
socket.on("disconnect", (reason) => say({ is: "disconnect", reason }));
socket.on("connect_error", (error) =>
  say({ is: "connect_error", message: error.message, data: error.data, active: socket.active, body: error.context?.responseText }),
);
socket.io.on("reconnect", (attempt) => say({ is: "reconnect", attempt }));
socket.onAny((name, ...args) => say({ is: "event", name, args }));
process.stdin.on("data", () => {
  socket.close();
  process.exit(0);
});
