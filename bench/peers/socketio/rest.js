// The REST calls of the public API that the load generator makes.

import { expected } from "./store.js";

const LARGEST_BODY = 64 * 1024;
const UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const JOIN = new RegExp(`^/api/v1/rooms/(${UUID})/join$`);
const MESSAGES = new RegExp(`^/api/v1/rooms/(${UUID})/messages$`);

export function restHandler(store, tokens, rooms) {
  const open = {
    "GET /ready": async () => ({}),
    "POST /api/v1/auth/register": async ({ username, email, password }) => ({ id: await store.register(username, email, password) }),
    "POST /api/v1/auth/login": async ({ username, password }) => {
      const id = await store.logIn(username, password);
      return { user: { id }, access_token: tokens.issue(id) };
    },
  };
  const authenticated = {
    "POST /api/v1/rooms": async (user, { name }) => {
      const id = await store.makeRoom(name ?? "", null, [user]);
      await rooms.join(id, user);
      return { id };
    },
    "POST /api/v1/dm": async (user, { recipient_id }) => {
      const pair = [user, String(recipient_id)].sort().join("");
      const id = await store.makeRoom("", pair, [user, recipient_id]);
      await rooms.join(id, user);
      await rooms.join(id, recipient_id);
      return { id };
    },
  };

  async function answer(request) {
    const url = new URL(request.url, "http://localhost");
    const name = `${request.method} ${url.pathname}`;
    const body = request.method === "POST" ? await read(request) : {};
    if (open[name]) return open[name](body);
    const user = tokens.user(/^Bearer (.*)$/.exec(request.headers.authorization ?? "")?.[1]);
    if (user === null) throw expected(401, "the token is missing, wrong or expired");
    if (authenticated[name]) return authenticated[name](user, body);
    const join = request.method === "POST" && JOIN.exec(url.pathname);
    if (join) {
      await rooms.join(join[1], user);
      return {};
    }
    const messages = request.method === "GET" && MESSAGES.exec(url.pathname);
    if (messages) {
      await rooms.mustHave(messages[1], user);
      const limit = Math.min(Math.max(Number(url.searchParams.get("limit") ?? 50), 1), 100);
      const before = Number(url.searchParams.get("before") ?? Number.MAX_SAFE_INTEGER);
      return { items: await store.page(messages[1], before, limit) };
    }
    throw expected(404, "there is no such call");
  }

  return (request, response) => {
    answer(request)
      .then((body) => [200, body])
      .catch((error) => {
        if (error.expected) return [error.status, { message: error.message }];
        console.error(`${request.method} failed:`, error.message);
        return [500, { message: "internal error" }];
      })
      .then(([status, body]) => {
        const text = JSON.stringify(body);
        response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) });
        response.end(text);
      });
  };
}

async function read(request) {
  const pieces = [];
  let length = 0;
  for await (const piece of request) {
    pieces.push(piece);
    length += piece.length;
    if (length > LARGEST_BODY) throw expected(413, "the body is too large");
  }
  if (length === 0) return {};
  try {
    return JSON.parse(Buffer.concat(pieces)) ?? {};
  } catch {
    throw expected(400, "the body is no JSON");
  }
}
