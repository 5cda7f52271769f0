// The official Socket.IO client against the hub's edge. Usage: node conformance.js URL
// One line per check; ends with 1 at the first that fails. Needs socket.io-client and socket.io-msgpack-parser.

const assert = require("node:assert");
const { randomUUID } = require("node:crypto");
const { io } = require("socket.io-client");
const msgpack = require("socket.io-msgpack-parser");

const url = process.argv[2];
const open = [];

function client(options = {}) {
  const { user = "ada", packed = false, ...rest } = options;
  const socket = io(url, {
    transports: ["websocket"],
    forceNew: true,
    reconnectionDelay: 50,
    reconnectionDelayMax: 100,
    auth: { token: `good:${user}`, protocol: "1", client: "conformance/1" },
    ...(packed ? { parser: msgpack, query: { parser: "msgpack" } } : {}),
    ...rest,
  });
  open.push(socket);
  return socket;
}

const once = (socket, name) =>
  new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`no ${name} in 10 s`)), 10000).unref();
    socket.once(name, resolve);
  });

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ready(options) {
  const socket = client(options);
  socket.ready = await once(socket, "session:ready");
  return socket;
}

const checks = {
  async "session:ready is the first event after connect"() {
    for (const packed of [false, true]) {
      const socket = client({ packed });
      const order = [];
      socket.on("connect", () => order.push("connect"));
      socket.onAny((name) => order.push(name));
      const session = await once(socket, "session:ready");
      assert.deepStrictEqual(order, ["connect", "session:ready"]);
      assert.strictEqual(session.user.id, "ada");
      assert.ok(!Number.isNaN(Date.parse(session.server_time)));
    }
  },

  async "acks carry answers and refusals"() {
    for (const packed of [false, true]) {
      const socket = await ready({ packed });
      const call = (name, payload) => socket.timeout(5000).emitWithAck(name, payload);
      assert.deepStrictEqual(await call("test:echo", { text: "hällo" }), { ok: true, data: { text: "hällo" } });
      assert.strictEqual((await call("no:such", {})).error.code, "unknown_event");
      assert.strictEqual((await call("test:echo", { text: 5 })).error.code, "validation_failed");
      assert.strictEqual((await call("test:echo", "text")).error.code, "validation_failed");
      assert.strictEqual((await call("test:crash", {})).error.code, "internal");
    }
  },

  async "a refused connect says why and is not tried again"() {
    const socket = client({ auth: { token: "bad", protocol: "1" } });
    const error = await once(socket, "connect_error");
    assert.deepStrictEqual(error.data, { code: "token_invalid", retryable: false });
    assert.strictEqual(socket.active, false);
  },

  async "polling is refused"() {
    const socket = client({ transports: ["polling"], reconnection: false });
    await once(socket, "connect_error");
    assert.strictEqual(socket.connected, false);
  },

  async "200 messages and their acks keep their order, in both parsers at once"() {
    const call_id = randomUUID();
    const members = [await ready(), await ready({ user: "bob", packed: true })];
    const heard = members.map(() => []);
    for (const [index, member] of members.entries()) {
      member.on("test:posted", (event) => heard[index].push(event));
      assert.ok((await member.timeout(5000).emitWithAck("room:join", { call_id })).ok);
    }
    const acks = [];
    const sent = [];
    for (let number = 0; number < 200; number++) {
      sent.push(
        members[number % 2]
          .timeout(10000)
          .emitWithAck("test:post", { call_id, text: `${number}` })
          .then((answer) => acks.push([number % 2, number, answer.ok])),
      );
    }
    await Promise.all(sent);
    await pause(200);
    for (const events of heard) {
      assert.deepStrictEqual(events.map((event) => event.offset), [...Array(200).keys()].map((n) => n + 1));
      for (const side of [0, 1]) {
        const own = events.map((event) => Number(event.text)).filter((number) => number % 2 === side);
        assert.deepStrictEqual(own, [...Array(100).keys()].map((n) => 2 * n + side));
      }
    }
    assert.deepStrictEqual(heard[0].map((event) => event.text), heard[1].map((event) => event.text));
    assert.ok(acks.every(([, , ok]) => ok));
    for (const side of [0, 1]) {
      const numbers = acks.filter(([which]) => which === side).map(([, number]) => number);
      assert.deepStrictEqual(numbers, [...numbers].sort((a, b) => a - b));
    }
  },

  async "binary data arrives in both parsers"() {
    for (const packed of [false, true]) {
      const socket = await ready({ packed });
      const answer = await socket.timeout(5000).emitWithAck("test:bytes", { data: Buffer.from("12345") });
      assert.deepStrictEqual(answer, { ok: true, data: { size: 5 } });
    }
  },

  async "undefined in a msgpack payload is null"() {
    const socket = await ready({ packed: true });
    const answer = await socket.timeout(5000).emitWithAck("test:any", { data: undefined });
    assert.deepStrictEqual(answer, { ok: true, data: { data: null } });
  },

  async "a session closed with 1012 comes back by itself"() {
    for (const packed of [false, true]) {
      const socket = await ready({ packed });
      const first = socket.ready.session_id;
      const closing = once(socket, "session:closing");
      const gone = once(socket, "disconnect");
      const again = once(socket, "session:ready");
      socket.emit("test:close", { reconnect: true });
      assert.strictEqual((await closing).reconnect, true);
      assert.strictEqual(await gone, "transport close");
      assert.notStrictEqual((await again).session_id, first);
    }
  },

  async "a session closed for good stays away"() {
    for (const packed of [false, true]) {
      const socket = await ready({ packed });
      const gone = once(socket, "disconnect");
      socket.emit("test:close", { reconnect: false });
      assert.strictEqual(await gone, "io server disconnect");
      let back = false;
      socket.on("connect", () => (back = true));
      await pause(500);
      assert.strictEqual(back, false);
      assert.strictEqual(socket.active, false);
    }
  },

  async "heartbeats keep a quiet client connected"() {
    const socket = await ready();
    let gone = "";
    socket.on("disconnect", (reason) => (gone = reason));
    await pause(3500);
    assert.strictEqual(gone, "");
  },

  async "a client that says goodbye is gone"() {
    const socket = await ready();
    const gone = once(socket, "disconnect");
    socket.disconnect();
    assert.strictEqual(await gone, "io client disconnect");
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    await check();
    for (const socket of open.splice(0)) socket.disconnect();
    console.log(`ok ${name}`);
  }
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
