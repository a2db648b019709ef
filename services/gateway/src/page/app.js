'use strict';
// A small client of the public API. What people wrote is only ever inserted as text.

const $ = (id) => document.getElementById(id);
const API = '/api/v1';
const STORE = 'carillon.session';

let session = null;             // {access_token, refresh_token, user, device_id, ends}
let refreshing = null;          // the refresh under way, shared by all who need it
let refreshTimer = null;

const users = new Map();        // user id -> {username, display_name}
const presence = new Map();     // user id -> state
const rooms = new Map();        // room id -> room with summary
const places = new Map();       // room id -> last event seen, without gaps
const timelines = new Map();    // room id -> {messages: Map by id, notes: [], earliest, more, loaded}
const catching = new Map();     // room id -> promise of a catch-up under way
const outbox = new Map();       // client message id -> message that is not acknowledged yet
const typists = new Map();      // user id -> timer, in the open room
let current = null;

// === requests ===

class Refused extends Error {
  constructor(status, problem) {
    const fields = (problem.errors || []).map((e) => `${e.field}: ${e.detail}`).join('; ');
    super(fields || problem.detail || `error ${status}`);
    this.status = status;
    this.code = problem.code;
  }
}

async function request(method, path, body, token) {
  const headers = {};
  if (body !== undefined) headers['content-type'] = 'application/json';
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(API + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const text = await response.text();
  let value = null;
  try { value = text ? JSON.parse(text) : null; } catch { /* a proxy's page */ }
  if (!response.ok) throw new Refused(response.status, value || {});
  return value;
}

async function api(method, path, body) {
  if (session && Date.now() > session.ends - 5000) await refresh();
  try {
    return await request(method, path, body, session && session.access_token);
  } catch (error) {
    if (error.status !== 401 || !session) throw error;
    await refresh();
    return request(method, path, body, session.access_token);
  }
}

function refresh() {
  refreshing ??= (async () => {
    try {
      // Tabs share the session, and a refresh token works once: one tab at a time, and the others take what it got.
      await alone(async () => {
        const stored = stored_session();
        if (stored && stored.refresh_token !== session.refresh_token && stored.ends > Date.now() + 5000) return adopt(stored);
        return keep(await request('POST', '/auth/refresh', { refresh_token: (stored || session).refresh_token }));
      });
      if (socket.ready) socket.send('auth', { token: session.access_token }).catch(() => {});
    } catch (error) {
      if (error.status === 401) leaveSession();
      throw error;
    } finally {
      refreshing = null;
    }
  })();
  return refreshing;
}

function alone(work) { return navigator.locks ? navigator.locks.request('carillon.refresh', work) : work(); }

function stored_session() {
  try { return JSON.parse(localStorage.getItem(STORE)); } catch { return null; }
}

function keep(tokens) {
  session = {
    access_token: tokens.access_token, refresh_token: tokens.refresh_token, user: tokens.user,
    device_id: tokens.device_id, ends: Date.now() + tokens.expires_in * 1000,
  };
  localStorage.setItem(STORE, JSON.stringify(session));
  adopt(session);
}

function adopt(next) {
  session = next;
  users.set(session.user.id, session.user);
  clearTimeout(refreshTimer);
  // A minute early, or halfway for very short tokens.
  const left = session.ends - Date.now();
  refreshTimer = setTimeout(() => refresh().catch(() => {}), Math.max(left - 60000, left / 2, 1000));
}

// === entrance ===

let registering = false;

function mode(register) {
  registering = register;
  $('mode-login').setAttribute('aria-pressed', String(!register));
  $('mode-register').setAttribute('aria-pressed', String(register));
  $('email-label').hidden = !register;
  $('email').required = register;
  $('password').autocomplete = register ? 'new-password' : 'current-password';
  $('enter').textContent = register ? 'Register' : 'Log in';
  $('entrance-error').textContent = '';
  $('entrance-note').textContent = '';
  $('forgot').hidden = register;
}

$('mode-login').addEventListener('click', () => mode(false));
$('mode-register').addEventListener('click', () => mode(true));

$('entrance-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('entrance-error').textContent = '';
  $('enter').disabled = true;
  const username = $('username').value.trim();
  const password = $('password').value;
  try {
    if (registering) await request('POST', '/auth/register', { username, email: $('email').value.trim(), password });
    const who = username.includes('@') ? { email: username } : { username };
    keep(await request('POST', '/auth/login', { ...who, password, device: 'Browser' }));
    $('password').value = '';
    await enter();
  } catch (error) {
    $('entrance-error').textContent = error.message;
  } finally {
    $('enter').disabled = false;
  }
});

$('forgot').addEventListener('click', async () => {
  const email = $('username').value.trim();
  $('entrance-note').textContent = '';
  $('entrance-error').textContent = email.includes('@') ? '' : 'Write your e-mail address above, then press again.';
  if (!email.includes('@')) return;
  try {
    await request('POST', '/auth/password/forgot', { email });
    $('entrance-note').textContent = 'If an account has this address, a link is on its way there.';
  } catch (error) {
    $('entrance-error').textContent = error.message;
  }
});

// === links from mails ===

let resetToken = null;

// What comes after # goes to no server by itself, and so into no log. Whether it led to the entrance.
async function followLink() {
  const [what, token] = location.hash.slice(1).split('=');
  if (!token || (what !== 'verify' && what !== 'reset')) return false;
  history.replaceState(null, '', location.pathname);
  if (what === 'reset') {
    resetToken = token;
    $('entrance').hidden = false;
    $('entrance-form').hidden = true;
    $('reset-form').hidden = false;
    $('new-password').focus();
    return true;
  }
  try {
    await request('POST', '/auth/email/verify', { token });
    $('entrance-note').textContent = 'Your e-mail address is confirmed.';
  } catch (error) {
    $('entrance-error').textContent = error.message;
  }
  $('entrance').hidden = false;
  return true;
}

$('reset-form').addEventListener('submit', async (event) => {
  event.preventDefault();
  $('reset-error').textContent = '';
  try {
    await request('POST', '/auth/password/reset', { token: resetToken, new_password: $('new-password').value });
    localStorage.removeItem(STORE);
    $('new-password').value = '';
    $('reset-form').hidden = true;
    $('entrance-form').hidden = false;
    $('entrance-note').textContent = 'Your password is set: log in with it.';
    $('username').focus();
  } catch (error) {
    $('reset-error').textContent = error.message;
  }
});

$('logout').addEventListener('click', async () => {
  try { await api('POST', '/auth/logout'); } catch { /* it ends here in any case */ }
  leaveSession();
});

function leaveSession() {
  localStorage.removeItem(STORE);
  clearTimeout(refreshTimer);
  session = null;
  socket.stop();
  for (const map of [rooms, places, timelines, outbox, presence, users]) map.clear();
  current = null;
  $('chat').hidden = true;
  $('entrance').hidden = false;
  $('username').focus();
}

async function enter() {
  $('entrance').hidden = true;
  $('chat').hidden = false;
  $('my-name').textContent = session.user.display_name;
  socket.start();
  await loadRooms();
}

// === the socket ===

const socket = {
  ws: null, ready: false, wanted: false, attempt: 0, next: 1, waiting: new Map(), timer: null,

  start() { this.wanted = true; this.attempt = 0; this.open(); },

  stop() {
    this.wanted = false;
    clearTimeout(this.timer);
    if (this.ws) this.ws.close(1000);
    this.ws = null;
    this.ready = false;
  },

  open() {
    clearTimeout(this.timer);
    if (!this.wanted || this.ws) return;
    status('Connecting…');
    const ws = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}${API}/ws`);
    this.ws = ws;
    ws.onmessage = (event) => { if (this.ws === ws) this.receive(JSON.parse(event.data)); };
    ws.onclose = (event) => {
      if (this.ws !== ws) return;
      this.ws = null;
      this.ready = false;
      for (const { fail } of this.waiting.values()) fail(new Error('disconnected'));
      this.waiting.clear();
      if (event.code === 4002) return leaveSession();
      this.again(event.code);
    };
  },

  // Waits longer each time, with jitter, so that many clients don't come back at the same moment.
  async again(code) {
    if (!this.wanted) return;
    const longest = Math.min(30000, 500 * 2 ** this.attempt);
    const pause = longest * (0.5 + Math.random() / 2);
    this.attempt += 1;
    status(`Offline. Trying again in ${Math.ceil(pause / 1000)} s…`);
    if (code === 4001) { try { await refresh(); } catch { /* tried again with the next connection */ } }
    if (this.wanted && !this.ws) this.timer = setTimeout(() => this.open(), pause);
  },

  send(type, payload) {
    const id = String(this.next++);
    return new Promise((done, fail) => {
      if (!this.ws || this.ws.readyState !== WebSocket.OPEN) return fail(new Error('disconnected'));
      this.waiting.set(id, { done, fail });
      this.ws.send(JSON.stringify({ type, id, payload }));
    });
  },

  // For what may be lost.
  hint(type, payload) { if (this.ready) this.send(type, payload).catch(() => {}); },

  receive(frame) {
    const asked = frame.id === undefined ? undefined : this.waiting.get(frame.id);
    if (asked) {
      this.waiting.delete(frame.id);
      if (frame.type === 'error') asked.fail(Object.assign(new Error(frame.payload.detail), frame.payload));
      else asked.done(frame.payload);
    }
    if (frame.type === 'auth_required') this.authenticate();
    else if (frame.type !== 'ack' && frame.type !== 'error') onFrame(frame);
  },

  async authenticate() {
    try {
      if (Date.now() > session.ends - 5000) await refresh();
      const welcome = await this.send('auth', { token: session.access_token, resume: Object.fromEntries(places) });
      this.ready = true;
      this.attempt = 0;
      status('Connected');
      for (const room of Object.keys(welcome.resume)) if (!places.has(room)) places.set(room, welcome.resume[room]);
      for (const room of [...places.keys()]) if (!(room in welcome.resume)) { places.delete(room); timelines.delete(room); }
      loadRooms().catch(() => {});
      if (current && timelines.has(current)) catchUp(current);
      for (const message of outbox.values()) deliver(message);
    } catch { /* the close event goes on from here */ }
  },
};

addEventListener('online', () => { if (socket.wanted && !socket.ws) { socket.attempt = 0; socket.open(); } });

function status(text) { $('connection').textContent = text; }

// === events ===

// Every event of a room's log, and nothing else, says how many messages were before it.
const isRoomEvent = (payload) => payload && 'messages_before' in payload;

function onFrame({ type, payload }) {
  if (isRoomEvent(payload)) return onRoomEvent(type, payload);
  switch (type) {
    case 'resync': places.set(payload.room_id, payload.from_sequence); catchUp(payload.room_id); break;
    case 'typing': if (payload.room_id === current) showTyping(payload.user_id, payload.activity); break;
    case 'stop_typing': stopTyping(payload.user_id); break;
    case 'user_online': case 'user_offline': presence.set(payload.user_id, payload.state); drawRooms(); drawNote(); break;
    case 'dm_created': loadRooms().catch(() => {}); break;
    case 'messages_read':
      if (payload.user_id === session.user.id) { const room = rooms.get(payload.room_id); if (room) { room.unread_count = 0; drawRooms(); } }
      break;
  }
}

// Sequence numbers are dense: an event is the next one, or a repeat, or shows that something is missing.
function onRoomEvent(type, payload) {
  const room = payload.room_id;
  if (!places.has(room)) places.set(room, payload.sequence - 1);
  const place = places.get(room);
  if (payload.sequence <= place) return;
  if (payload.sequence > place + 1) return catchUp(room);
  places.set(room, payload.sequence);
  apply(type, payload);
}

function catchUp(room) {
  if (!catching.has(room)) {
    catching.set(room, (async () => {
      try {
        for (let more = true; more;) {
          const page = await api('GET', `/rooms/${room}/events?after=${places.get(room) || 0}&limit=500`);
          if (page.first_available > (places.get(room) || 0) + 1) places.set(room, page.first_available - 1);
          for (const { type, payload } of page.items) {
            if (payload.sequence === (places.get(room) || 0) + 1) { places.set(room, payload.sequence); apply(type, payload); }
          }
          more = page.next !== null;
        }
      } catch (error) {
        if (error.status === 404 || error.status === 403) { places.delete(room); rooms.delete(room); drawRooms(); }
      } finally {
        catching.delete(room);
      }
    })());
  }
  return catching.get(room);
}

function apply(type, payload) {
  const room = rooms.get(payload.room_id);
  const line = timelines.get(payload.room_id);
  switch (type) {
    case 'new_message': {
      outbox.delete(payload.client_message_id);
      line?.messages.set(payload.id, payload);
      if (room) {
        room.last_message = payload;
        // The summary may have counted it already.
        const counted = payload.sequence <= room.head_sequence;
        // Who writes has read.
        if (payload.sender_id === session.user.id) room.unread_count = 0;
        else if (!counted && payload.room_id !== current) room.unread_count += 1;
      } else loadRooms().catch(() => {});
      stopTyping(payload.sender_id);
      if (payload.sender_id !== session.user.id) confirmDelivery(payload.room_id);
      if (payload.room_id === current) markRead(payload.room_id, payload.sequence);
      break;
    }
    case 'edit_message': {
      const message = line?.messages.get(payload.message_id);
      if (message && !message.deleted_at) Object.assign(message, { content: payload.content, edited_at: payload.time });
      break;
    }
    case 'delete_message': {
      const message = line?.messages.get(payload.message_id);
      if (message) Object.assign(message, { content: '', deleted_at: payload.time });
      break;
    }
    case 'user_joined': line?.notes.push({ sequence: payload.sequence, user: payload.user_id, what: 'joined' }); if (!room) loadRooms().catch(() => {}); break;
    case 'user_left':
      line?.notes.push({ sequence: payload.sequence, user: payload.user_id, what: 'left' });
      if (payload.reason === 'erased') {
        for (const message of line?.messages.values() || []) {
          if (message.sender_id === payload.user_id) Object.assign(message, { content: '', deleted_at: payload.time });
        }
      }
      if (payload.user_id === session.user.id) forgetRoom(payload.room_id);
      break;
    case 'room_deleted': forgetRoom(payload.room_id); break;
    case 'room_updated': if (room) Object.assign(room, { name: payload.name, description: payload.description, rules: payload.rules }); break;
  }
  if (room) room.head_sequence = Math.max(room.head_sequence, payload.sequence);
  drawRooms();
  if (payload.room_id === current) drawMessages(true);
}

function forgetRoom(room) {
  rooms.delete(room);
  places.delete(room);
  timelines.delete(room);
  if (current === room) closeRoom();
}

// === people ===

async function learn(ids) {
  const missing = [...new Set(ids)].filter((id) => id && !users.has(id));
  for (let i = 0; i < missing.length; i += 100) {
    const { items } = await api('GET', `/users?ids=${missing.slice(i, i + 100).join(',')}`);
    for (const user of items) users.set(user.id, user);
  }
  return missing.length > 0;
}

function nameOf(id) { return users.get(id)?.display_name || '…'; }

async function learnPresence(ids) {
  const some = [...new Set(ids)].filter(Boolean).slice(0, 100);
  if (!some.length) return;
  const { items } = await api('GET', `/presence?users=${some.join(',')}`);
  for (const { user_id, state } of items) presence.set(user_id, state);
}

// === conversations ===

async function loadRooms() {
  const seen = new Set();
  let cursor = null;
  do {
    const page = await api('GET', `/rooms/me?limit=100${cursor ? `&cursor=${cursor}` : ''}`);
    for (const room of page.items) { rooms.set(room.id, room); seen.add(room.id); }
    cursor = page.next;
  } while (cursor);
  for (const id of [...rooms.keys()]) if (!seen.has(id)) rooms.delete(id);
  const peers = [...rooms.values()].map((room) => room.peer_id);
  await Promise.all([learn(peers), learnPresence(peers)]);
  drawRooms();
}

function titleOf(room) { return room.peer_id ? nameOf(room.peer_id) : room.name; }

function drawRooms() {
  const list = [...rooms.values()].sort((a, b) => (b.last_message?.time || b.created_at).localeCompare(a.last_message?.time || a.created_at));
  $('rooms').replaceChildren(...list.map((room) => {
    const button = document.createElement('button');
    button.type = 'button';
    if (room.id === current) button.setAttribute('aria-current', 'true');
    button.append(dot(room), text('span', 'name', titleOf(room)));
    if (room.unread_count > 0) {
      const badge = text('span', 'badge', String(room.unread_count));
      badge.setAttribute('aria-label', `${room.unread_count} unread`);
      button.append(badge);
    }
    button.addEventListener('click', () => openRoom(room.id));
    const item = document.createElement('li');
    item.append(button);
    return item;
  }));
}

function dot(room) {
  const state = room.peer_id ? presence.get(room.peer_id) || 'offline' : null;
  const mark = text('span', state ? `dot ${state}` : 'hash', state ? '' : '#');
  if (state) { mark.setAttribute('role', 'img'); mark.setAttribute('aria-label', state); }
  return mark;
}

function text(tag, className, content) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = content;
  return element;
}

async function attempt(work) {
  $('side-problem').textContent = '';
  try { await work(); } catch (error) { $('side-problem').textContent = error.message; }
}

$('dm-form').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt(async () => {
    const user = await api('GET', `/users/by-username/${encodeURIComponent($('dm-name').value.trim())}`);
    users.set(user.id, user);
    const room = await api('POST', '/dm', { recipient_id: user.id });
    $('dm-name').value = '';
    await loadRooms();
    await openRoom(room.id);
  });
});

$('room-form').addEventListener('submit', (event) => {
  event.preventDefault();
  attempt(async () => {
    const room = await api('POST', '/rooms', { name: $('room-name').value.trim(), description: '', type: $('room-kind').value });
    $('room-name').value = '';
    await loadRooms();
    await openRoom(room.id);
  });
});

$('browse').addEventListener('toggle', () => {
  if (!$('browse').open) return;
  attempt(async () => {
    const { items } = await api('GET', '/rooms?limit=100');
    $('public-rooms').replaceChildren(...items.map((room) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(text('span', 'hash', '#'), text('span', 'name', room.name), text('span', 'note', rooms.has(room.id) ? 'joined' : 'join'));
      button.addEventListener('click', () => attempt(async () => {
        if (!rooms.has(room.id)) { await api('POST', `/rooms/${room.id}/join`); await loadRooms(); }
        await openRoom(room.id);
      }));
      const item = document.createElement('li');
      item.append(button);
      return item;
    }));
  });
});

// === the open conversation ===

async function openRoom(id) {
  current = id;
  const room = rooms.get(id);
  if (!room) return;
  for (const user of [...typists.keys()]) stopTyping(user);
  $('chat').classList.add('open');
  $('room-title').textContent = titleOf(room);
  $('leave').hidden = room.type === 'direct';
  $('send-form').hidden = false;
  drawRooms();
  if (!timelines.has(id)) {
    timelines.set(id, { messages: new Map(), notes: [], earliest: null, more: true });
    await attempt(() => loadEarlier(id));
  }
  drawMessages(true);
  drawNote();
  $('draft').focus();
  const line = timelines.get(id);
  const last = Math.max(0, ...[...(line?.messages.values() || [])].map((m) => m.sequence));
  if (last) markRead(id, last);
}

function closeRoom() {
  current = null;
  $('chat').classList.remove('open');
  $('room-title').textContent = 'Choose a conversation';
  $('room-note').textContent = '';
  $('messages').replaceChildren();
  $('send-form').hidden = true;
  $('leave').hidden = true;
  $('earlier').hidden = true;
  drawRooms();
}

$('back').addEventListener('click', closeRoom);
$('leave').addEventListener('click', () => attempt(async () => { const id = current; await api('POST', `/rooms/${id}/leave`); forgetRoom(id); drawRooms(); }));

async function loadEarlier(id) {
  const line = timelines.get(id);
  const before = line.earliest ? `&before=${line.earliest}` : '';
  const page = await api('GET', `/rooms/${id}/messages?limit=40${before}`);
  for (const message of page.items) line.messages.set(message.id, message);
  line.earliest = page.next ? Number(page.next) : line.earliest;
  line.more = page.next !== null;
  await learn(page.items.map((message) => message.sender_id));
}

$('earlier').addEventListener('click', () => attempt(async () => {
  const box = $('scroll');
  const fromEnd = box.scrollHeight - box.scrollTop;
  await loadEarlier(current);
  drawMessages(false);
  box.scrollTop = box.scrollHeight - fromEnd;
}));

function drawMessages(follow) {
  const line = timelines.get(current);
  if (!line) return;
  const box = $('scroll');
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  $('earlier').hidden = !line.more;
  const unknown = [];
  const entries = [
    ...[...line.messages.values()].map((message) => ({ sequence: message.sequence, message })),
    ...line.notes.map((note) => ({ sequence: note.sequence, note })),
  ].sort((a, b) => a.sequence - b.sequence);
  for (const message of outbox.values()) if (message.room_id === current) entries.push({ message });
  $('messages').replaceChildren(...entries.map(({ message, note }) => {
    const who = message ? message.sender_id : note.user;
    if (!users.has(who)) unknown.push(who);
    return message ? drawMessage(message) : text('li', 'event', `${nameOf(who)} ${note.what}`);
  }));
  if (follow && atEnd) box.scrollTop = box.scrollHeight;
  if (unknown.length) learn(unknown).then((learned) => { if (learned) drawMessages(follow); }).catch(() => {});
}

function drawMessage(message) {
  const mine = message.sender_id === session.user.id;
  const item = text('li', 'message', '');
  if (mine) item.classList.add('mine');
  if (!message.sequence) item.classList.add(message.problem ? 'refused' : 'waiting');
  if (message.deleted_at) item.classList.add('gone');
  const who = text('div', 'who', '');
  who.append(text('b', '', nameOf(message.sender_id)));
  const when = text('time', '', new Date(message.time).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }));
  when.dateTime = message.time;
  who.append(when);
  if (message.edited_at && !message.deleted_at) who.append(text('span', '', 'edited'));
  if (message.problem) who.append(text('span', '', message.problem));
  const shown = message.deleted_at ? 'deleted' : message.type === 'text' ? message.content : `[${message.type}] ${message.content}`;
  item.append(who, text('div', 'text', shown));
  if (mine && message.sequence && !message.deleted_at) {
    const acts = text('div', 'acts', '');
    acts.append(act('Edit', () => {
      const content = prompt('Edit the message', message.content);
      if (content && content !== message.content) return api('PATCH', `/messages/${message.id}`, { content });
      return null;
    }), act('Delete', () => api('DELETE', `/messages/${message.id}`)));
    item.append(acts);
  }
  return item;
}

function act(label, work) {
  const button = text('button', '', label);
  button.type = 'button';
  button.addEventListener('click', () => attempt(work));
  return button;
}

function drawNote() {
  const room = rooms.get(current);
  $('room-note').textContent = room?.peer_id ? presence.get(room.peer_id) || 'offline' : room?.description || '';
}

function markRead(room, sequence) {
  if (document.visibilityState !== 'visible') return;
  const known = rooms.get(room);
  if (known && known.unread_count) { known.unread_count = 0; drawRooms(); }
  socket.hint('read', { room_id: room, sequence });
}

// Says what this device has, at most twice a second for each room.
const confirming = new Set();

function confirmDelivery(room) {
  if (confirming.has(room)) return;
  confirming.add(room);
  setTimeout(() => {
    confirming.delete(room);
    if (places.has(room)) socket.hint('delivered', { room_id: room, sequence: places.get(room) });
  }, 500);
}

// === sending ===

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

function submit() {
  const content = $('draft').value.trim();
  if (!content || !current) return;
  const message = {
    client_message_id: newId(), room_id: current, sender_id: session.user.id, type: 'text', content, time: new Date().toISOString(),
  };
  $('draft').value = '';
  grow();
  outbox.set(message.client_message_id, message);
  drawMessages(false);
  $('scroll').scrollTop = $('scroll').scrollHeight;
  deliver(message);
}

// Sent until it is acknowledged, always with the same id: it appears once, however often it was sent.
async function deliver(message) {
  if (!socket.ready || message.problem) return;
  const { room_id, client_message_id, type, content } = message;
  try {
    await socket.send('send_message', { room_id, client_message_id, type, content });
    delete message.problem;
  } catch (error) {
    if (error.code === undefined) return;
    if (error.retryable) { setTimeout(() => { if (outbox.has(client_message_id)) deliver(message); }, error.retry_after_ms || 1000); return; }
    message.problem = error.message;
    drawMessages(false);
  }
}

$('send-form').addEventListener('submit', (event) => { event.preventDefault(); submit(); });
$('draft').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
});

let lastTyping = 0;
$('draft').addEventListener('input', () => {
  grow();
  if (current && $('draft').value && Date.now() - lastTyping > 2000) { lastTyping = Date.now(); socket.hint('typing', { room_id: current }); }
});

function grow() {
  const box = $('draft');
  box.rows = Math.min(6, box.value.split('\n').length);
}

function showTyping(user, activity) {
  clearTimeout(typists.get(user));
  typists.set(user, setTimeout(() => stopTyping(user), 3500));
  drawTyping(activity);
  learn([user]).then((learned) => { if (learned) drawTyping(activity); }).catch(() => {});
}

function stopTyping(user) {
  if (!typists.has(user)) return;
  clearTimeout(typists.get(user));
  typists.delete(user);
  drawTyping('typing');
}

function drawTyping(activity) {
  const names = [...typists.keys()].map(nameOf);
  const what = activity === 'recording' ? 'recording' : 'typing';
  $('typing').textContent = names.length ? `${names.join(', ')} ${names.length > 1 ? 'are' : 'is'} ${what}…` : '';
}

// === start ===

(async () => {
  if (await followLink()) return;
  const stored = stored_session();
  if (!stored || !stored.user) { $('entrance').hidden = false; $('username').focus(); return; }
  adopt(stored);
  // A page that opens without a server still shows itself, and connects when it can.
  await enter().catch(() => {});
})();
