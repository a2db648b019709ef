package main

import (
	"encoding/json"
	"errors"
	"log"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
)

type api struct {
	hub      *hub
	tokens   tokens
	upgrader websocket.Upgrader
}

type object = map[string]any

// handler answers a request of a user with JSON.
type handler func(r *http.Request, user uuid.UUID) (any, error)

func newAPI(h *hub, t tokens) http.Handler {
	// Small buffers, because most sockets are idle; frames are written past the library's own.
	a := &api{hub: h, tokens: t, upgrader: websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 512}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", a.open(func(*http.Request, uuid.UUID) (any, error) { return object{}, nil }))
	mux.HandleFunc("POST /api/v1/auth/register", a.open(a.register))
	mux.HandleFunc("POST /api/v1/auth/login", a.open(a.logIn))
	mux.HandleFunc("POST /api/v1/rooms", a.authenticated(a.makeRoom))
	mux.HandleFunc("POST /api/v1/rooms/{room}/join", a.authenticated(a.join))
	mux.HandleFunc("POST /api/v1/dm", a.authenticated(a.direct))
	mux.HandleFunc("GET /api/v1/rooms/{room}/messages", a.authenticated(a.messages))
	mux.HandleFunc("GET /api/v1/ws", a.socket)
	return mux
}

func (a *api) user(r *http.Request) (uuid.UUID, error) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return a.tokens.user(token)
}

func (a *api) authenticated(h handler) http.HandlerFunc {
	return a.open(func(r *http.Request, _ uuid.UUID) (any, error) {
		user, err := a.user(r)
		if err != nil {
			return nil, err
		}
		return h(r, user)
	})
}

var errInvalid = errors.New("the request makes no sense")

func (a *api) open(h handler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, largestFrame)
		answer, err := h(r, uuid.UUID{})
		status := http.StatusOK
		switch {
		case err == nil:
		case errors.Is(err, errToken):
			status = http.StatusUnauthorized
		case errors.Is(err, errNotFound):
			status = http.StatusNotFound
		case errors.Is(err, errTaken):
			status = http.StatusConflict
		case errors.Is(err, errInvalid):
			status = http.StatusBadRequest
		default:
			log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
			status, err = http.StatusInternalServerError, errors.New("internal error")
		}
		if err != nil {
			answer = object{"message": err.Error()}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer)
	}
}

func body(r *http.Request, into any) error {
	if json.NewDecoder(r.Body).Decode(into) != nil {
		return errInvalid
	}
	return nil
}

type credentials struct{ Username, Email, Password string }

func (a *api) register(r *http.Request, _ uuid.UUID) (any, error) {
	var c credentials
	if err := body(r, &c); err != nil {
		return nil, err
	}
	if c.Username == "" || len(c.Password) < 8 {
		return nil, errInvalid
	}
	id, err := a.hub.store.register(r.Context(), c.Username, c.Email, c.Password)
	return object{"id": id}, err
}

func (a *api) logIn(r *http.Request, _ uuid.UUID) (any, error) {
	var c credentials
	if err := body(r, &c); err != nil {
		return nil, err
	}
	id, err := a.hub.store.logIn(r.Context(), c.Username, c.Password)
	if err != nil {
		return nil, err
	}
	return object{"user": object{"id": id}, "access_token": a.tokens.issue(id)}, nil
}

func (a *api) makeRoom(r *http.Request, user uuid.UUID) (any, error) {
	var wanted struct{ Name string }
	if err := body(r, &wanted); err != nil {
		return nil, err
	}
	id, err := a.hub.store.makeRoom(r.Context(), wanted.Name, nil, user)
	if err != nil {
		return nil, err
	}
	return object{"id": id}, a.hub.join(r.Context(), id, user)
}

func (a *api) direct(r *http.Request, user uuid.UUID) (any, error) {
	var wanted struct {
		Recipient uuid.UUID `json:"recipient_id"`
	}
	if err := body(r, &wanted); err != nil {
		return nil, err
	}
	one, other := user.String(), wanted.Recipient.String()
	pair := min(one, other) + max(one, other)
	id, err := a.hub.store.makeRoom(r.Context(), "", &pair, user, wanted.Recipient)
	if err != nil {
		return nil, err
	}
	for _, member := range []uuid.UUID{user, wanted.Recipient} {
		if err := a.hub.join(r.Context(), id, member); err != nil {
			return nil, err
		}
	}
	return object{"id": id}, nil
}

func roomID(r *http.Request) (uuid.UUID, error) {
	id, err := uuid.Parse(r.PathValue("room"))
	if err != nil {
		return id, errInvalid
	}
	return id, nil
}

func (a *api) join(r *http.Request, user uuid.UUID) (any, error) {
	id, err := roomID(r)
	if err != nil {
		return nil, err
	}
	return object{}, a.hub.join(r.Context(), id, user)
}

func (a *api) messages(r *http.Request, user uuid.UUID) (any, error) {
	const mostOfPage = 100
	id, err := roomID(r)
	if err != nil {
		return nil, err
	}
	room, err := a.hub.find(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if !room.has(user) {
		return nil, errNotFound
	}
	number := func(name string, otherwise int64) int64 {
		value, err := strconv.ParseInt(r.URL.Query().Get(name), 10, 64)
		if err != nil {
			return otherwise
		}
		return value
	}
	limit := min(max(number("limit", 50), 1), mostOfPage)
	items, err := a.hub.store.page(r.Context(), id, number("before", math.MaxInt64), int(limit))
	if items == nil {
		items = []*message{}
	}
	return object{"items": items}, err
}

func (a *api) socket(w http.ResponseWriter, r *http.Request) {
	user, err := a.user(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	connection, err := a.upgrader.Upgrade(w, r, nil)
	if err != nil {
		// The library has answered.
		return
	}
	s := &socket{hub: a.hub, user: user, connection: connection, wake: make(chan struct{}, 1)}
	if err := a.hub.enter(r.Context(), s); err != nil {
		log.Printf("cannot load the rooms of a user: %v", err)
		connection.Close()
		return
	}
	s.put(textFrame([]byte(`{"type":"connection_ack","payload":{"user_id":"` + user.String() + `","heartbeat_ms":30000}}`)))
	go s.write()
	// Out of the HTTP server's goroutine, so that its buffers are let go.
	go func() {
		defer a.hub.leave(s)
		defer s.close()
		s.read()
	}()
}
