// Follows jobs with the ActionCable library of npm as its page shows it, printing what happens to it, one JSON line
// each, until it is killed. Usage: node actioncable.mjs ws://host:port/cable '[{"channel":…,"id":…},…]'
// It leaves the channel in which it is told of a milestone "leave".
import WebSocket from "ws";

// What the library wants of a browser.
Object.assign(globalThis, {
  self: globalThis,
  WebSocket,
  document: { visibilityState: "visible" },
  addEventListener: () => {},
  removeEventListener: () => {},
});
const { default: ActionCable } = await import("@rails/actioncable");
ActionCable.ConnectionMonitor.staleThreshold = 2; // seconds of silence until it takes a connection for dead; its own: 6

const say = (line) => console.log(JSON.stringify(line));
const [url, channels] = process.argv.slice(2);
const consumer = ActionCable.createConsumer(url);
const { connection } = consumer;
const { message } = connection.events;
connection.events.message = function (event) {
  const { type } = JSON.parse(event.data);
  if (type) say({ is: type, protocol: connection.getProtocol() });
  return message.call(this, event);
};
for (const channel of JSON.parse(channels)) {
  const { id } = channel;
  const subscription = consumer.subscriptions.create(channel, {
    connected: ({ reconnected }) => say({ is: "connected", id, reconnected }),
    disconnected: ({ willAttemptReconnect }) => say({ is: "disconnected", id, willAttemptReconnect }),
    rejected: () => say({ is: "rejected", id }),
    received: (message) => {
      say({ is: "received", id, message });
      if (message.event === "leave") subscription.unsubscribe();
    },
  });
}
