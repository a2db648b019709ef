package main

import (
	"context"
	"encoding/json"
	"hash/maphash"
	"log"
	"sync"
	"time"

	"github.com/google/uuid"
)

// hub knows the rooms in use and the sockets of their members.
type hub struct {
	store   *store
	careful bool
	writers []chan *send
	mu      sync.Mutex
	rooms   map[uuid.UUID]*room
	users   map[uuid.UUID]map[*socket]struct{}
}

type room struct {
	id uuid.UUID
	// order is held from a message's insert until it waits at every socket: so all see one order.
	order sync.Mutex
	last  int64

	mu      sync.RWMutex
	members map[uuid.UUID]struct{}
	sockets map[*socket]struct{}
}

// send is a message on its way into the store.
type send struct {
	socket    *socket
	room      *room
	requestID string
	message   *message
}

const (
	// writers is how many groups of inserts are under way; a room always goes to the same one.
	writers = 4
	// together is how many messages one insert takes, at most.
	together    = 256
	insertLimit = 10 * time.Second
)

func newHub(store *store, careful bool) *hub {
	h := &hub{store: store, careful: careful, rooms: map[uuid.UUID]*room{}, users: map[uuid.UUID]map[*socket]struct{}{}}
	if careful {
		for range writers {
			waiting := make(chan *send, 4*together)
			h.writers = append(h.writers, waiting)
			go h.insertWaiting(waiting)
		}
	}
	return h
}

// find answers a room, from the store when it is not in use yet.
func (h *hub) find(ctx context.Context, id uuid.UUID) (*room, error) {
	h.mu.Lock()
	known := h.rooms[id]
	h.mu.Unlock()
	if known != nil {
		return known, nil
	}
	members, last, err := h.store.loadRoom(ctx, id)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if known := h.rooms[id]; known != nil {
		return known, nil
	}
	r := &room{id: id, last: last, members: map[uuid.UUID]struct{}{}, sockets: map[*socket]struct{}{}}
	for _, member := range members {
		r.members[member] = struct{}{}
		for s := range h.users[member] {
			r.sockets[s] = struct{}{}
		}
	}
	h.rooms[id] = r
	return r, nil
}

func (h *hub) join(ctx context.Context, id, user uuid.UUID) error {
	r, err := h.find(ctx, id)
	if err != nil {
		return err
	}
	if err := h.store.join(ctx, id, user); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members[user] = struct{}{}
	for s := range h.users[user] {
		r.sockets[s] = struct{}{}
	}
	return nil
}

// enter makes a socket follow the rooms of its user.
func (h *hub) enter(ctx context.Context, s *socket) error {
	ids, err := h.store.roomsOf(ctx, s.user)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := h.find(ctx, id); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users[s.user] == nil {
		h.users[s.user] = map[*socket]struct{}{}
	}
	h.users[s.user][s] = struct{}{}
	for _, id := range ids {
		r := h.rooms[id]
		r.mu.Lock()
		r.sockets[s] = struct{}{}
		r.mu.Unlock()
	}
	return nil
}

func (h *hub) leave(s *socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.users[s.user], s)
	if len(h.users[s.user]) == 0 {
		delete(h.users, s.user)
	}
	for _, r := range h.rooms {
		r.mu.Lock()
		delete(r.sockets, s)
		r.mu.Unlock()
	}
}

func (r *room) has(user uuid.UUID) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, is := r.members[user]
	return is
}

// send stores a message, then delivers and acknowledges it. Careful: it only waits for a place in the queue.
func (h *hub) send(s *send) {
	if h.careful {
		h.writers[maphash.Comparable(seed, s.room.id)%writers] <- s
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), insertLimit)
	defer cancel()
	s.room.order.Lock()
	defer s.room.order.Unlock()
	isNew, err := h.store.insert(ctx, s.message)
	s.finish(isNew, err)
}

var seed = maphash.MakeSeed()

// insertWaiting stores whatever waits with one insert, over and over.
func (h *hub) insertWaiting(waiting chan *send) {
	for first := range waiting {
		batch := []*send{first}
		for len(batch) < together && len(waiting) > 0 {
			batch = append(batch, <-waiting)
		}
		h.insertBatch(batch)
	}
}

func (h *hub) insertBatch(batch []*send) {
	ctx, cancel := context.WithTimeout(context.Background(), insertLimit)
	defer cancel()
	messages := make([]*message, len(batch))
	last := map[*room]int64{}
	for i, s := range batch {
		if _, known := last[s.room]; !known {
			last[s.room] = s.room.last
		}
		last[s.room]++
		s.message.place(last[s.room])
		messages[i] = s.message
	}
	err := h.store.insertAll(ctx, messages)
	if err == errTaken && len(batch) > 1 {
		// One of them is a retry: find out which by inserting them alone.
		for i := range batch {
			h.insertBatch(batch[i : i+1])
		}
		return
	}
	isNew := err == nil
	if isNew {
		for r, sequence := range last {
			r.last = sequence
		}
	} else if err == errTaken {
		err = h.store.findFirst(ctx, batch[0].message)
	}
	for _, s := range batch {
		s.finish(isNew, err)
	}
}

// finish delivers and acknowledges a message, or says why it was not stored.
func (s *send) finish(isNew bool, err error) {
	if err != nil {
		if err != errOther {
			log.Printf("cannot store a message: %v", err)
		}
		s.socket.put(errorFrame(s.requestID, err))
		return
	}
	payload, err := json.Marshal(s.message)
	if err != nil {
		s.socket.put(errorFrame(s.requestID, err))
		return
	}
	if isNew {
		delivery := newMessageFrame(payload)
		s.room.mu.RLock()
		for socket := range s.room.sockets {
			socket.put(delivery)
		}
		s.room.mu.RUnlock()
	}
	s.socket.put(ackFrame(s.requestID, s.message.Sequence, payload))
}
