package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const schema = `
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
	PRIMARY KEY (room_id, sequence), UNIQUE (sender_id, client_message_id));`

// message has the fields of Carillon's, so that both put the same bytes on the wire.
type message struct {
	ID              uuid.UUID `json:"id"`
	RoomID          uuid.UUID `json:"room_id"`
	Sequence        int64     `json:"sequence"`
	MessagesBefore  int64     `json:"messages_before"`
	SenderID        uuid.UUID `json:"sender_id"`
	Time            time.Time `json:"time"`
	Type            string    `json:"type"`
	Content         string    `json:"content"`
	ReplyTo         *string   `json:"reply_to"`
	ClientMessageID string    `json:"client_message_id"`
	EditedAt        *string   `json:"edited_at"`
	DeletedAt       *string   `json:"deleted_at"`
	Revision        int64     `json:"revision"`
}

func (m *message) place(sequence int64) {
	m.Sequence, m.MessagesBefore, m.Revision = sequence, sequence-1, sequence
}

var (
	errNotFound = errors.New("there is no such thing")
	errTaken    = errors.New("it exists already")
	errOther    = errors.New("this client_message_id was used for another message")
)

type store struct{ pool *pgxpool.Pool }

func openStore(ctx context.Context, database string, connections int) (*store, error) {
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(connections)
	config.MinConns = int32(connections)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err := pool.Exec(ctx, schema); err != nil {
		return nil, fmt.Errorf("cannot make the tables: %w", err)
	}
	return &store{pool}, nil
}

func (s *store) close() { s.pool.Close() }

func isTaken(err error) bool {
	var failure *pgconn.PgError
	return errors.As(err, &failure) && failure.Code == "23505"
}

func (s *store) register(ctx context.Context, username, email, password string) (uuid.UUID, error) {
	hash, err := hashPassword(password)
	if err != nil {
		return uuid.UUID{}, err
	}
	id := uuid.New()
	_, err = s.pool.Exec(ctx, "INSERT INTO users VALUES ($1, $2, $3, $4)", id, username, email, hash)
	if isTaken(err) {
		return id, errTaken
	}
	return id, err
}

func (s *store) logIn(ctx context.Context, username, password string) (uuid.UUID, error) {
	var id uuid.UUID
	var hash []byte
	err := s.pool.QueryRow(ctx, "SELECT id, password FROM users WHERE username = $1", username).Scan(&id, &hash)
	if errors.Is(err, pgx.ErrNoRows) || (err == nil && !isPassword(password, hash)) {
		return id, errToken
	}
	return id, err
}

// makeRoom makes a room with these members. With a pair (the ids of two people, in order) it answers the room that the pair has, if any.
func (s *store) makeRoom(ctx context.Context, name string, pair *string, members ...uuid.UUID) (uuid.UUID, error) {
	id := uuid.New()
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `INSERT INTO rooms (id, name, pair) VALUES ($1, $2, $3)
			ON CONFLICT (pair) DO UPDATE SET pair = excluded.pair RETURNING id`, id, name, pair).Scan(&id); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, "INSERT INTO members SELECT $1, unnest($2::uuid[]) ON CONFLICT DO NOTHING", id, members)
		return err
	})
	return id, err
}

func (s *store) join(ctx context.Context, room, user uuid.UUID) error {
	_, err := s.pool.Exec(ctx, "INSERT INTO members VALUES ($1, $2) ON CONFLICT DO NOTHING", room, user)
	return err
}

func (s *store) ids(ctx context.Context, query string, argument uuid.UUID) ([]uuid.UUID, error) {
	rows, err := s.pool.Query(ctx, query, argument)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[uuid.UUID])
}

func (s *store) roomsOf(ctx context.Context, user uuid.UUID) ([]uuid.UUID, error) {
	return s.ids(ctx, "SELECT room_id FROM members WHERE user_id = $1", user)
}

// loadRoom answers members and highest sequence.
func (s *store) loadRoom(ctx context.Context, room uuid.UUID) ([]uuid.UUID, int64, error) {
	var last int64
	err := s.pool.QueryRow(ctx, `SELECT greatest(last_sequence, (SELECT coalesce(max(sequence), 0) FROM messages WHERE room_id = id))
		FROM rooms WHERE id = $1`, room).Scan(&last)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, 0, errNotFound
	}
	if err != nil {
		return nil, 0, err
	}
	members, err := s.ids(ctx, "SELECT user_id FROM members WHERE room_id = $1", room)
	return members, last, err
}

// insert commits one message in the next place of its room. isNew is false for a retry, which gets its first result.
func (s *store) insert(ctx context.Context, m *message) (isNew bool, err error) {
	var sequence int64
	err = s.pool.QueryRow(ctx, `WITH room AS (UPDATE rooms SET last_sequence = last_sequence + 1 WHERE id = $1 RETURNING last_sequence)
		INSERT INTO messages SELECT $1, last_sequence, $2, $3, $4, $5, $6 FROM room RETURNING sequence`,
		m.RoomID, m.ID, m.SenderID, m.ClientMessageID, m.Content, m.Time).Scan(&sequence)
	if isTaken(err) {
		return false, s.findFirst(ctx, m)
	}
	m.place(sequence)
	return true, err
}

// insertAll commits messages whose places have been chosen, all or none. errTaken if one of them is a retry.
func (s *store) insertAll(ctx context.Context, messages []*message) error {
	count := len(messages)
	rooms, ids, senders := make([]uuid.UUID, count), make([]uuid.UUID, count), make([]uuid.UUID, count)
	sequences, times := make([]int64, count), make([]time.Time, count)
	clientIDs, contents := make([]string, count), make([]string, count)
	for i, m := range messages {
		rooms[i], sequences[i], ids[i], senders[i] = m.RoomID, m.Sequence, m.ID, m.SenderID
		clientIDs[i], contents[i], times[i] = m.ClientMessageID, m.Content, m.Time
	}
	_, err := s.pool.Exec(ctx, `INSERT INTO messages
		SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::uuid[], $5::text[], $6::text[], $7::timestamptz[])`,
		rooms, sequences, ids, senders, clientIDs, contents, times)
	if isTaken(err) {
		return errTaken
	}
	return err
}

const columns = "id, room_id, sequence, sender_id, client_message_id, content, sent_at"

func scan(row pgx.CollectableRow) (*message, error) {
	m := &message{Type: "text"}
	err := row.Scan(&m.ID, &m.RoomID, &m.Sequence, &m.SenderID, &m.ClientMessageID, &m.Content, &m.Time)
	m.Time = m.Time.UTC()
	m.place(m.Sequence)
	return m, err
}

// findFirst puts the first result of a retried message in its place.
func (s *store) findFirst(ctx context.Context, m *message) error {
	rows, err := s.pool.Query(ctx, "SELECT "+columns+" FROM messages WHERE sender_id = $1 AND client_message_id = $2",
		m.SenderID, m.ClientMessageID)
	if err != nil {
		return err
	}
	first, err := pgx.CollectExactlyOneRow(rows, scan)
	if err != nil {
		return err
	}
	if first.Content != m.Content || first.RoomID != m.RoomID {
		return errOther
	}
	*m = *first
	return nil
}

// page answers the newest messages before a place, newest first.
func (s *store) page(ctx context.Context, room uuid.UUID, before int64, limit int) ([]*message, error) {
	rows, err := s.pool.Query(ctx, "SELECT "+columns+` FROM messages WHERE room_id = $1 AND sequence < $2
		ORDER BY sequence DESC LIMIT $3`, room, before, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scan)
}
