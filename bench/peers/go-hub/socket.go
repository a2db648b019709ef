package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/gorilla/websocket"
)

const (
	// A socket that lets more frames wait is cut off.
	mostWaiting  = 4096
	joinedBytes  = 64 * 1024
	heartbeat    = 30 * time.Second
	writeLimit   = 10 * time.Second
	largestFrame = 64 * 1024
)

// socket is a connection: one goroutine reads and one writes.
type socket struct {
	hub        *hub
	user       uuid.UUID
	connection *websocket.Conn

	mu      sync.Mutex
	waiting [][]byte
	closed  bool
	wake    chan struct{}
}

// put queues a frame, and cuts the socket off when too many wait.
func (s *socket) put(frame []byte) {
	s.mu.Lock()
	if len(s.waiting) >= mostWaiting {
		s.closed = true
	} else {
		s.waiting = append(s.waiting, frame)
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *socket) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write sends what waits until the socket is closed: a write per frame, or, careful, what waits in one write.
func (s *socket) write() {
	defer s.connection.Close()
	ticks := time.NewTicker(heartbeat)
	defer ticks.Stop()
	var frames [][]byte
	var joined []byte
	for {
		select {
		case <-s.wake:
		case <-ticks.C:
			if s.connection.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeLimit)) != nil {
				return
			}
			continue
		}
		s.mu.Lock()
		closed := s.closed
		frames, s.waiting = s.waiting, frames[:0]
		s.mu.Unlock()
		if closed || s.writeAll(frames, &joined) != nil {
			return
		}
		clear(frames)
		if cap(frames) > 64 {
			frames = nil
		}
		if cap(joined) > joinedBytes {
			joined = nil
		}
	}
}

// writeAll writes frames that are encoded already: a frame is encoded once, however many sockets get it. A control frame that the library
// writes goes between two of these writes, because each takes the connection's write lock.
func (s *socket) writeAll(frames [][]byte, joined *[]byte) error {
	raw := s.connection.NetConn()
	if err := raw.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	for len(frames) > 0 {
		bytes := frames[0]
		frames = frames[1:]
		if s.hub.careful && len(frames) > 0 {
			*joined = append((*joined)[:0], bytes...)
			for len(frames) > 0 && len(*joined) < joinedBytes {
				*joined = append(*joined, frames[0]...)
				frames = frames[1:]
			}
			bytes = *joined
		}
		if _, err := raw.Write(bytes); err != nil {
			return err
		}
	}
	return nil
}

type request struct {
	Type    string `json:"type"`
	ID      string `json:"id"`
	Payload struct {
		RoomID          uuid.UUID `json:"room_id"`
		ClientMessageID string    `json:"client_message_id"`
		Type            string    `json:"type"`
		Content         string    `json:"content"`
	} `json:"payload"`
}

// read does what the client asks for, until it is gone.
func (s *socket) read() {
	s.connection.SetReadLimit(largestFrame)
	alive := func(string) error { return s.connection.SetReadDeadline(time.Now().Add(5 * heartbeat / 2)) }
	_ = alive("")
	s.connection.SetPongHandler(alive)
	for {
		_, bytes, err := s.connection.ReadMessage()
		if err != nil {
			return
		}
		var r request
		if err := json.Unmarshal(bytes, &r); err != nil {
			s.put(errorFrame("", err))
			continue
		}
		switch r.Type {
		case "ping":
			s.put(textFrame([]byte(`{"type":"pong","id":` + quote(r.ID) + `,"payload":{"time":` + quote(time.Now().UTC().Format(time.RFC3339Nano)) + `}}`)))
		case "send_message":
			s.sendMessage(&r)
		default:
			s.put(errorFrame(r.ID, errNotFound))
		}
	}
}

func (s *socket) sendMessage(r *request) {
	ctx, cancel := context.WithTimeout(context.Background(), insertLimit)
	defer cancel()
	to, err := s.hub.find(ctx, r.Payload.RoomID)
	if err == nil && !to.has(s.user) {
		err = errNotFound
	}
	if err != nil {
		s.put(errorFrame(r.ID, err))
		return
	}
	s.hub.send(&send{socket: s, room: to, requestID: r.ID, message: &message{
		ID: uuid.Must(uuid.NewV7()), RoomID: to.id, SenderID: s.user, Time: time.Now().UTC().Truncate(time.Microsecond), Type: "text",
		Content: r.Payload.Content, ClientMessageID: r.Payload.ClientMessageID,
	}})
}

func quote(text string) string {
	// Strings always have a JSON form.
	quoted, _ := json.Marshal(text)
	return string(quoted)
}

func newMessageFrame(payload []byte) []byte {
	return textFrame(concat(`{"type":"new_message","payload":`, payload, `}`))
}

func ackFrame(id string, sequence int64, payload []byte) []byte {
	place, _ := json.Marshal(sequence)
	return textFrame(concat(`{"type":"ack","id":`+quote(id)+`,"payload":{"sequence":`+string(place)+`,"message":`, payload, `}}`))
}

func errorFrame(id string, err error) []byte {
	return textFrame([]byte(`{"type":"error","id":` + quote(id) + `,"payload":{"message":` + quote(err.Error()) + `}}`))
}

func concat(before string, middle []byte, after string) []byte {
	return append(append(append(make([]byte, 0, len(before)+len(middle)+len(after)), before...), middle...), after...)
}

// textFrame is an unmasked, final text frame of RFC 6455.
func textFrame(payload []byte) []byte {
	frame := make([]byte, 0, len(payload)+10)
	switch length := len(payload); {
	case length <= 125:
		frame = append(frame, 0x81, byte(length))
	case length <= 65_535:
		frame = binary.BigEndian.AppendUint16(append(frame, 0x81, 126), uint16(length))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 0x81, 127), uint64(length))
	}
	return append(frame, payload...)
}
