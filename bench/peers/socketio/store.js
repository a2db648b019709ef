// Everything that is kept, in PostgreSQL.

import { randomUUID } from "node:crypto";
import pg from "pg";
import { hashPassword, isPassword } from "./tokens.js";

// Sequences are bigint, which the driver gives as text; they stay far below 2^53 here.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

const SCHEMA = `
CREATE TABLE IF NOT EXISTS users (
  id uuid PRIMARY KEY, username text NOT NULL UNIQUE, email text NOT NULL UNIQUE, password bytea NOT NULL);
CREATE TABLE IF NOT EXISTS rooms (
  id uuid PRIMARY KEY, name text NOT NULL, pair text UNIQUE, last_sequence bigint NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS members (
  room_id uuid NOT NULL REFERENCES rooms, user_id uuid NOT NULL REFERENCES users, PRIMARY KEY (room_id, user_id));
CREATE INDEX IF NOT EXISTS members_of_user ON members (user_id);
CREATE TABLE IF NOT EXISTS messages (
  room_id uuid NOT NULL, sequence bigint NOT NULL, id uuid NOT NULL, sender_id uuid NOT NULL, client_message_id text NOT NULL,
  content text NOT NULL, sent_at timestamptz NOT NULL,
  PRIMARY KEY (room_id, sequence), UNIQUE (sender_id, client_message_id));`;

/** An error whose text a client may read. */
export function expected(status, text) {
  return Object.assign(new Error(text), { expected: true, status });
}

const isTaken = (error) => error.code === "23505";

export class Store {
  #pool;

  static async open(connectionString, connections) {
    const store = new Store();
    store.#pool = new pg.Pool({ connectionString, max: connections, idleTimeoutMillis: 0 });
    store.#pool.on("error", (error) => console.error("PostgreSQL:", error.message));
    await store.#pool.query(SCHEMA);
    return store;
  }

  close() {
    return this.#pool.end();
  }

  // Named, so that it is planned once for a connection.
  async #rows(name, text, values) {
    return (await this.#pool.query({ name, text, values })).rows;
  }

  async register(username, email, password) {
    const id = randomUUID();
    const hash = await hashPassword(password);
    try {
      await this.#rows("register", "INSERT INTO users VALUES ($1, $2, $3, $4)", [id, username, email, hash]);
    } catch (error) {
      throw isTaken(error) ? expected(409, "it exists already") : error;
    }
    return id;
  }

  async logIn(username, password) {
    const [user] = await this.#rows("log-in", "SELECT id, password FROM users WHERE username = $1", [username]);
    if (!user || !(await isPassword(password, user.password))) throw expected(401, "wrong user name or password");
    return user.id;
  }

  /** Makes a room with these members; with a pair (two ids, in order), answers the room that the pair has, if any. */
  async makeRoom(name, pair, members) {
    const [{ id }] = await this.#rows(
      "make-room",
      `WITH room AS (INSERT INTO rooms (id, name, pair) VALUES ($1, $2, $3)
         ON CONFLICT (pair) DO UPDATE SET pair = excluded.pair RETURNING id),
       joined AS (INSERT INTO members SELECT id, unnest($4::uuid[]) FROM room ON CONFLICT DO NOTHING)
       SELECT id FROM room`,
      [randomUUID(), name, pair, members],
    );
    return id;
  }

  async join(room, user) {
    await this.#rows("join", "INSERT INTO members VALUES ($1, $2) ON CONFLICT DO NOTHING", [room, user]);
  }

  async roomsOf(user) {
    const rows = await this.#rows("rooms-of", "SELECT room_id FROM members WHERE user_id = $1", [user]);
    return rows.map((row) => row.room_id);
  }

  /** The ids of a room's members; empty if there is no such room. */
  async membersOf(room) {
    const rows = await this.#rows("members-of", "SELECT user_id FROM members WHERE room_id = $1", [room]);
    return rows.map((row) => row.user_id);
  }

  /** Commits a message in the next place of its room. A retry gets its first result. */
  async insert({ id, room_id, sender_id, client_message_id, content, sent_at }) {
    try {
      const [{ sequence }] = await this.#rows(
        "insert",
        `WITH room AS (UPDATE rooms SET last_sequence = last_sequence + 1 WHERE id = $1 RETURNING last_sequence)
         INSERT INTO messages SELECT $1, last_sequence, $2, $3, $4, $5, $6 FROM room RETURNING sequence`,
        [room_id, id, sender_id, client_message_id, content, sent_at],
      );
      return { isNew: true, message: present({ id, room_id, sequence, sender_id, client_message_id, content, sent_at }) };
    } catch (error) {
      if (!isTaken(error)) throw error;
    }
    const [first] = await this.#rows("first", "SELECT * FROM messages WHERE sender_id = $1 AND client_message_id = $2", [
      sender_id,
      client_message_id,
    ]);
    if (!first || first.room_id !== room_id || first.content !== content) {
      throw expected(409, "this client_message_id was used for another message");
    }
    return { isNew: false, message: present(first) };
  }

  /** The newest messages before a place, newest first. */
  async page(room, before, limit) {
    const rows = await this.#rows(
      "page",
      "SELECT * FROM messages WHERE room_id = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3",
      [room, before, limit],
    );
    return rows.map(present);
  }
}

/** A message with the fields of Carillon's, so that both put the same bytes on the wire. */
function present({ id, room_id, sequence, sender_id, client_message_id, content, sent_at }) {
  return {
    id,
    room_id,
    sequence,
    messages_before: sequence - 1,
    sender_id,
    time: sent_at,
    type: "text",
    content,
    reply_to: null,
    client_message_id,
    edited_at: null,
    deleted_at: null,
    revision: sequence,
  };
}
