package main

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"
)

// tokens are the user's id and an expiry, signed: no look-up is needed to check one.
type tokens struct{ secret []byte }

const tokenLifetime = 24 * time.Hour

var errToken = errors.New("the token is missing, wrong or expired")

func (t tokens) issue(user uuid.UUID) string {
	body := binary.BigEndian.AppendUint64(user[:], uint64(time.Now().Add(tokenLifetime).Unix()))
	return base64.RawURLEncoding.EncodeToString(t.sign(body))
}

func (t tokens) user(token string) (uuid.UUID, error) {
	const body = 24
	bytes, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(bytes) != body+sha256.Size || !hmac.Equal(bytes, t.sign(bytes[:body:body])) {
		return uuid.UUID{}, errToken
	}
	if time.Now().Unix() > int64(binary.BigEndian.Uint64(bytes[16:body])) {
		return uuid.UUID{}, errToken
	}
	return uuid.UUID(bytes[:16]), nil
}

func (t tokens) sign(body []byte) []byte {
	mac := hmac.New(sha256.New, t.secret)
	mac.Write(body)
	return mac.Sum(body)
}

// Few iterations: thousands of accounts are made for a measurement, and that is not what is measured.
const passwordIterations = 1_000

func hashPassword(password string) ([]byte, error) {
	salt := make([]byte, 16)
	rand.Read(salt)
	key, err := pbkdf2.Key(sha256.New, password, salt, passwordIterations, sha256.Size)
	return append(salt, key...), err
}

func isPassword(password string, hash []byte) bool {
	if len(hash) != 16+sha256.Size {
		return false
	}
	key, err := pbkdf2.Key(sha256.New, password, hash[:16], passwordIterations, sha256.Size)
	return err == nil && hmac.Equal(key, hash[16:])
}
