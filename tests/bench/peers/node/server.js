// The Node peer: socket.io as its documentation sets it up, with the same commands as the hub's side of the benchmark.
// Environment: PORT, BENCH_SECRET, REDIS_URL, ADAPTER=sharded|streams, BENCH_STALL=1 (watch the event loop)
"use strict";
const http = require("node:http");
const { createSecretKey } = require("node:crypto");
const jwt = require("jsonwebtoken");
const { Server } = require("socket.io");

// A KeyObject: with the secret as a string every verification would make one anew, at fifty times the cost.
const key = createSecretKey(Buffer.from(process.env.BENCH_SECRET));

async function adapter() {
  const { createClient } = require("redis");
  const client = createClient({ url: process.env.REDIS_URL });
  client.on("error", console.error);
  await client.connect();
  if (process.env.ADAPTER === "streams") {
    const { createAdapter } = require("@socket.io/redis-streams-adapter");
    return createAdapter(client);
  }
  const { createShardedAdapter } = require("@socket.io/redis-adapter");
  const hearing = client.duplicate();
  hearing.on("error", console.error);
  await hearing.connect();
  return createShardedAdapter(client, hearing, { subscriptionMode: "dynamic" });
}

// The longest that the loop kept a timer of one millisecond waiting, since it was last asked for.
let worst = 0;
if (process.env.BENCH_STALL) {
  let due = performance.now() + 1;
  setInterval(() => {
    const now = performance.now();
    worst = Math.max(worst, now - due);
    due = now + 1;
  }, 1);
}

function serve(io) {
  io.use((socket, next) => {
    try {
      const options = { algorithms: ["HS256"], audience: "authenticated" };
      socket.data.user = jwt.verify(socket.handshake.auth.token, key, options).sub;
      next();
    } catch (error) {
      next(error);
    }
  });
  io.on("connection", (socket) => {
    socket.emit("session:ready", { session_id: socket.id, user: { user_id: socket.data.user } });
    socket.on("bench:join", async (d, ack) => {
      await socket.join(d.call_id);
      ack({ ok: true, data: {} });
    });
    socket.on("bench:say", (d) => io.to(d.call_id).emit("bench:said", d));
    socket.on("bench:record", (d) => io.to(d.call_id).emit("bench:said", d));
    socket.on("bench:echo", (d, ack) => ack({ ok: true, data: d }));
    socket.on("bench:relay", (d) => io.to(d.call_id).emit("bench:relayed", d));
    socket.on("bench:upload", (d, ack) => ack({ ok: true, data: { size: d.data.length } }));
    socket.on("bench:stall", (d, ack) => {
      ack({ ok: true, data: { stall_ms: worst } });
      worst = 0;
    });
  });
}

async function main() {
  const options = { serveClient: false, maxHttpBufferSize: 8e6 };
  if (process.env.ADAPTER === "streams") options.connectionStateRecovery = {};
  if (process.env.ADAPTER) options.adapter = await adapter();
  const server = http.createServer();
  serve(new Server(server, options));
  server.listen(Number(process.env.PORT), "127.0.0.1", 4096);
}

main();
