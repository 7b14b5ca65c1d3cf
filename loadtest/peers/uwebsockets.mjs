// uWebSockets as its documentation shows it: native topics, one process, no compression.
import uws from "uwebsockets";

const app = uws.App();
app.ws("/ws", {
  compression: uws.DISABLED,
  // An event's default of 64 KiB would drop what a slow watcher has not read.
  maxBackpressure: 1024 * 1024,
  upgrade: (response, request, context) => {
    response.upgrade(
      { job: request.getQuery("job") },
      request.getHeader("sec-websocket-key"),
      request.getHeader("sec-websocket-protocol"),
      request.getHeader("sec-websocket-extensions"),
      context,
    );
  },
  open: (socket) => socket.subscribe(socket.getUserData().job),
});
app.post("/publish", (response, request) => {
  const job = request.getQuery("job");
  const parts = [];
  response.onAborted(() => {});
  response.onData((part, last) => {
    // The buffer is only lent.
    parts.push(Buffer.from(Buffer.from(part)));
    if (!last) return;
    app.publish(job, Buffer.concat(parts), false);
    response.cork(() => response.writeStatus("202 Accepted").end());
  });
});
app.listen("127.0.0.1", Number(process.argv[2]), (listening) => {
  if (!listening) process.exit(1);
});
