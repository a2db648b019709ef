// A chat backend as teams write it with socket.io: one process, PostgreSQL behind it. A peer for the load generator, so its REST calls are the
// part of Carillon's public API that the load generator uses, and it makes two of its promises: a message is committed
// before it is acknowledged or delivered, and a room has one order.
//
// Not here: more than one process, pushes, presence, edits, rate limits, observability.

import { createServer } from "node:http";
import { Server } from "socket.io";
import { Store } from "./store.js";
import { Tokens } from "./tokens.js";
import { restHandler } from "./rest.js";
import { Rooms } from "./rooms.js";

const [host, port] = (process.env.LISTEN ?? "127.0.0.1:8080").split(":");
const tokens = new Tokens(process.env.HUB_SECRET);
const store = await Store.open(process.env.DATABASE_URL, 32);
const http = createServer();
// WebSocket alone: the load generator opens no long polling. Compression is off by default.
const io = new Server(http, { transports: ["websocket"], serveClient: false, pingInterval: 30_000, pingTimeout: 45_000 });
const rooms = new Rooms(store, io);
http.on("request", restHandler(store, tokens, rooms));

io.use((socket, next) => {
  const user = tokens.user(socket.handshake.auth?.token);
  if (user === null) return next(new Error("the token is missing, wrong or expired"));
  socket.data.user = user;
  // Whatever a later join adds reaches all sockets of a user through this room.
  socket.join(`user:${user}`);
  store
    .roomsOf(user)
    .then((ids) => {
      socket.join(ids);
      next();
    })
    .catch((error) => {
      console.error("cannot load the rooms of a user:", error.message);
      next(new Error("internal error"));
    });
});

io.on("connection", (socket) => {
  socket.on("hello", (answer) => answer?.("pong"));
  socket.on("send_message", (request, acknowledge) => {
    if (typeof acknowledge !== "function") return;
    rooms
      .send(socket.data.user, request)
      .then((message) => acknowledge({ sequence: message.sequence, message }))
      .catch((error) => {
        if (!error.expected) console.error("cannot store a message:", error.message);
        acknowledge({ error: error.expected ? error.message : "internal error" });
      });
  });
});

http.listen(Number(port), host);
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.once(signal, async () => {
    await io.close();
    await store.close();
    process.exit(0);
  });
}
