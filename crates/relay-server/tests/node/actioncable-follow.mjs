// What a page does with the ActionCable library: follows channels, and says what happens to it, one JSON line each. It
// leaves the channel in which it is told of a milestone "leave". It reaches for nothing but its arguments, so that it
// can be given to a browser as it is.
export function follow(ActionCable, url, channels, say) {
  ActionCable.ConnectionMonitor.staleThreshold = 2; // seconds of silence until it takes a connection for dead; its own: 6
  const consumer = ActionCable.createConsumer(url);
  const { connection } = consumer;
  const { message } = connection.events;
  connection.events.message = function (event) {
    const { type } = JSON.parse(event.data);
    if (type) say({ is: type, protocol: connection.getProtocol() });
    return message.call(this, event);
  };
  for (const channel of channels) {
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
}
