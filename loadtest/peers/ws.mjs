// What a user writes by hand with `ws`: a Map from job to sockets, and a loop that sends to each.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const jobs = new Map();
const query = (url) => new URL(url, "http://localhost").searchParams.get("job");

const server = createServer((request, response) => {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    const body = Buffer.concat(parts).toString();
    for (const socket of jobs.get(query(request.url)) ?? []) {
      if (socket.readyState === socket.OPEN) socket.send(body);
    }
    response.writeHead(202, { "content-length": 0 }).end();
  });
});
const sockets = new WebSocketServer({ server, perMessageDeflate: false });
sockets.on("connection", (socket, request) => {
  const job = query(request.url);
  if (!jobs.has(job)) jobs.set(job, new Set());
  jobs.get(job).add(socket);
  socket.on("close", () => jobs.get(job).delete(socket));
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
