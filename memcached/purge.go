// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

const (
	// purgeTimeout bounds a purge, which takes some two seconds for a million items.
	purgeTimeout = 2 * time.Minute
	// purgeBatch bounds the keys in memory; of more, the items are listed again.
	purgeBatch = 200_000
	// purgePasses bounds how often the items are listed. An item that moves among the lists of a server while they are
	// walked can be missed, so that the last pass has to find nothing.
	purgePasses = 100
	// purgeWrite is how many deletes go out with one wait.
	purgeWrite = 500
)

// Purge has the server forget the keys that the ring gives to other servers, and returns how many these were. They were
// its own in an earlier ring: nobody has read or changed them here since, and if the ring gave them back, what is here
// would be out of date. Whoever else is found at the server's address keeps theirs, and that is an error. Keys that the
// server owns, and the order in which it evicts them, stay as they are. It gives up when the context ends and after two
// minutes at the latest.
func Purge(ctx context.Context, s Server, ring *Ring) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, purgeTimeout)
	defer cancel()
	purged := 0
	for range purgePasses {
		keys, err := strangeKeys(ctx, s, ring)
		if err == nil {
			err = deleteAll(ctx, s, keys)
		}
		if err != nil {
			return purged, fmt.Errorf("purging %s at %s: %w", s.Name, s.DialAddress(), err)
		}
		if len(keys) == 0 {
			return purged, nil
		}
		purged += len(keys)
	}
	return purged, fmt.Errorf("purging %s: it goes on getting keys that others own", s.Name)
}

// strangeKeys lists keys that the server holds and does not own, at most purgeBatch. It reads the list as fast as it
// comes and to its end: servers up to 1.6.43 break when a reader stalls, and up to 1.6.25 when one leaves early.
func strangeKeys(ctx context.Context, s Server, ring *Ring) ([]string, error) {
	var keys []string
	err := talkTo(ctx, s.DialAddress(), func(conn net.Conn) error {
		if err := identify(conn, s.Identity); err != nil {
			return err
		}
		if _, err := conn.Write([]byte("lru_crawler metadump all\r\n")); err != nil {
			return err
		}
		r := bufio.NewReaderSize(conn, sessionBufferBytes)
		for {
			line, err := readLine(r)
			switch {
			case err != nil:
				return err
			case string(line) == "END":
				return nil
			case string(line) == lineOK: // from 1.6.43 on
				continue
			case !bytes.HasPrefix(line, []byte("key=")):
				return unexpectedLine(line)
			}
			if key, ok := dumpedKey(line); ok && len(keys) < purgeBatch && ring.strange(s, key) {
				keys = append(keys, key)
			}
		}
	})
	return keys, err
}

// strange reports whether another server than this one owns the key.
func (r *Ring) strange(s Server, key string) bool {
	owner, ok := r.Owner([]byte(key))
	return ok && owner.ringName() != s.ringName()
}

// dumpedKey reads the key in a line such as "key=a%20b exp=-1 la=1700000000 cas=7 fetch=no cls=1 size=70". One that the
// text protocol cannot name was not written through a ring.
func dumpedKey(line []byte) (string, bool) {
	escaped, _, _ := strings.Cut(strings.TrimPrefix(string(line), "key="), " ")
	key, err := url.PathUnescape(escaped)
	return key, err == nil && validKey([]byte(key))
}

// deleteAll deletes keys and waits for the answers.
func deleteAll(ctx context.Context, s Server, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return talkTo(ctx, s.DialAddress(), func(conn net.Conn) error {
		if err := identify(conn, s.Identity); err != nil {
			return err
		}
		r := bufio.NewReader(conn)
		for len(keys) > 0 {
			n := min(len(keys), purgeWrite)
			var text []byte
			for _, key := range keys[:n] {
				text = append(append(append(text, "delete "...), key...), lineEnd...)
			}
			if _, err := conn.Write(text); err != nil {
				return err
			}
			for range n {
				line, err := readLine(r)
				if err != nil {
					return err
				}
				if string(line) != "DELETED" && !bytes.Equal(line, wordNotFound) {
					return errors.New(string(line[:min(len(line), maxIdentityBytes)]))
				}
			}
			keys = keys[n:]
		}
		return nil
	})
}
