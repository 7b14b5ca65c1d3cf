// Socket.IO as its documentation shows it: a room a job, the in-memory adapter, WebSocket only.
import { createServer } from "node:http";
import { Server } from "socket.io";

const server = createServer();
const io = new Server(server, { transports: ["websocket"], perMessageDeflate: false });
io.on("connection", (socket) => {
  // From the query: an event sent right behind the connect packet would come too early.
  const { job } = socket.handshake.query;
  socket.join(job);
  socket.emit("joined", job);
});
server.prependListener("request", (request, response) => {
  if (!request.url.startsWith("/publish")) return;
  const job = new URL(request.url, "http://localhost").searchParams.get("job");
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    io.to(job).emit("state", JSON.parse(Buffer.concat(parts).toString()));
    response.writeHead(202, { "content-length": 0 }).end();
  });
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });
