// A chat backend as teams write it in Go: a hub of WebSockets in one process, PostgreSQL behind it. A peer for the load generator, so it
// speaks the part of Carillon's public API that the load generator uses, and makes two of its promises: a message is
// committed before it is acknowledged or delivered, and a room has one order.
//
// Not here: more than one process, pushes, presence, edits, rate limits, observability.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	pool := flag.Int("connections", 32, "PostgreSQL connections")
	careful := flag.Bool("careful", false, "insert together what waits, and write together what waits for a socket")
	flag.Parse()
	address, database, secret := os.Getenv("LISTEN"), os.Getenv("DATABASE_URL"), os.Getenv("HUB_SECRET")
	if len(secret) < 32 {
		log.Fatal("HUB_SECRET must hold at least 32 characters: tokens are signed with it")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, address, database, *pool, *careful, []byte(secret)); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, address, database string, pool int, careful bool, secret []byte) error {
	store, err := openStore(ctx, database, pool)
	if err != nil {
		return err
	}
	defer store.close()
	hub := newHub(store, careful)
	server := http.Server{Handler: newAPI(hub, tokens{secret}), ReadHeaderTimeout: 10 * time.Second}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		deadline, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(deadline)
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return nil
}
