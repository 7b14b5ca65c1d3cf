// Hands updates on to sockudo's HTTP API, signed as Pusher's protocol wants it.
import { createHash, createHmac } from "node:crypto";
import http from "node:http";

const [port, target] = process.argv.slice(2, 4).map(Number);
const [id, key, secret] = process.argv.slice(4);
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

const publish = (channel, data, done) => {
  const body = JSON.stringify({ name: "state", channel, data });
  const query = [
    `auth_key=${key}`,
    `auth_timestamp=${Math.floor(Date.now() / 1000)}`,
    "auth_version=1.0",
    `body_md5=${createHash("md5").update(body).digest("hex")}`,
  ].join("&");
  const path = `/apps/${id}/events`;
  const signature = createHmac("sha256", secret).update(`POST\n${path}\n${query}`).digest("hex");
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(body) };
  const request = http.request(
    { host: "127.0.0.1", port: target, path: `${path}?${query}&auth_signature=${signature}`, method: "POST", agent, headers },
    (answer) => {
      const said = [];
      answer.on("data", (part) => said.push(part));
      answer.on("end", () => done(answer.statusCode, Buffer.concat(said)));
    },
  );
  request.on("error", (error) => done(502, Buffer.from(String(error))));
  request.end(body);
};

const server = http.createServer((request, response) => {
  const job = new URL(request.url, "http://localhost").searchParams.get("job");
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    publish(job, Buffer.concat(parts).toString(), (status, said) => {
      response.writeHead(status, { "content-length": said.length }).end(said);
    });
  });
});
server.listen({ port, host: "127.0.0.1" });
