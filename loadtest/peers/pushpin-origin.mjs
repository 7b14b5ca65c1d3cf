// What stands behind Pushpin: accepts each connection and asks for it to be held (WebSocket over HTTP; GRIP for
// event streams), and hands publishing on to Pushpin's control port.
import http from "node:http";

const [port, control] = process.argv.slice(2).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

const event = (type, content = "") => {
  const body = Buffer.from(content);
  const head = body.length > 0 ? `${type} ${body.length.toString(16)}\r\n` : `${type}\r\n`;
  return Buffer.concat([Buffer.from(head), body, Buffer.from(body.length > 0 ? "\r\n" : "")]);
};

const publish = (job, text, done) => {
  const formats = {
    "ws-message": { content: text },
    "http-stream": { content: `data: ${text}\n\n` },
  };
  const body = JSON.stringify({ items: [{ channel: job, formats }] });
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  const target = { host: "127.0.0.1", port: control, path: "/publish/", method: "POST", agent, headers };
  const request = http.request(target, (answer) => {
    answer.resume();
    answer.on("end", () => done(answer.statusCode));
  });
  request.on("error", () => done(502));
  request.end(body);
};

const server = http.createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const job = url.searchParams.get("job");
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const body = Buffer.concat(parts);
    if (url.pathname === "/publish") {
      publish(job, body.toString(), (status) => response.writeHead(status, { "content-length": 0 }).end());
    } else if (url.pathname === "/sse") {
      const head = { "content-type": "text/event-stream", "grip-hold": "stream", "grip-channel": job };
      response.writeHead(200, head).end(":\n\n");
    } else if (body.toString().startsWith("OPEN")) {
      const hold = `c:${JSON.stringify({ type: "subscribe", channel: job })}`;
      const head = { "content-type": "application/websocket-events", "sec-websocket-extensions": "grip" };
      response.writeHead(200, head).end(Buffer.concat([event("OPEN"), event("TEXT", hold)]));
    } else {
      // a message, a close or a sign of life: nothing to say
      response.writeHead(200, { "content-type": "application/websocket-events" }).end();
    }
  });
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
