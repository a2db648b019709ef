// The rooms in use: who may send, and one message after the other, so that all see one order.

import { randomUUID } from "node:crypto";
import { expected } from "./store.js";

export class Rooms {
  #store;
  #io;
  /** Members and the end of the queue, by room; loads that are under way too. */
  #known = new Map();

  constructor(store, io) {
    this.#store = store;
    this.#io = io;
  }

  async #find(id) {
    if (!this.#known.has(id)) {
      const loading = this.#store.membersOf(id).then((members) => ({ members: new Set(members), last: Promise.resolve() }));
      this.#known.set(id, loading);
      loading.catch(() => this.#known.delete(id));
    }
    const room = await this.#known.get(id);
    if (room.members.size === 0) {
      this.#known.delete(id);
      throw expected(404, "there is no such room");
    }
    return room;
  }

  async join(id, user) {
    const room = await this.#find(id);
    await this.#store.join(id, user);
    room.members.add(user);
    this.#io.in(`user:${user}`).socketsJoin(id);
  }

  async mustHave(id, user) {
    const room = await this.#find(id);
    if (!room.members.has(user)) throw expected(404, "there is no such room");
    return room;
  }

  /** Commits, delivers, and answers the message. */
  async send(user, request) {
    const { room_id, client_message_id, content } = request ?? {};
    if (typeof room_id !== "string" || typeof client_message_id !== "string" || typeof content !== "string") {
      throw expected(400, "room_id, client_message_id and content must be texts");
    }
    const room = await this.mustHave(room_id, user);
    const message = { id: randomUUID(), room_id, sender_id: user, client_message_id, content, sent_at: new Date() };
    const before = room.last;
    let done;
    room.last = new Promise((resolve) => (done = resolve));
    try {
      await before;
      const stored = await this.#store.insert(message);
      // Encoded once, however many sockets get it.
      if (stored.isNew) this.#io.to(room_id).emit("new_message", stored.message);
      return stored.message;
    } finally {
      done();
    }
  }
}
