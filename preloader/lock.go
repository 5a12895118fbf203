// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is a file at the top of a directory while a preloader works in it. The lock
// of the directory itself is known to one machine only where that is on NFS; that of a
// file is known to the server, and so to pods of other nodes. It tells who holds it.
const lockName = ".preloader.lock"

// holder is who holds a directory, as the lock's file tells it.
type holder struct {
	// Host is the pod's name.
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Since is when it took the lock.
	Since time.Time `json:"since"`
}

// largestHolder bounds what is read of a lock's file.
const largestHolder = 4096

func (h holder) String() string {
	if h.Host == "" {
		return "another preloader"
	}
	return fmt.Sprintf("the preloader in %s (process %d, since %s)",
		strconv.Quote(h.Host), h.PID, h.Since.UTC().Format(time.RFC3339))
}

// queue says how one waits for another preloader in the same directory.
type queue struct {
	// longest bounds the wait; 0 is no bound.
	longest time.Duration
	log     *slog.Logger
}

const (
	// lockLook is how often one looks whether a directory is free.
	lockLook = 200 * time.Millisecond
	// lockTell is how often one says that one still waits.
	lockTell = time.Minute
)

// take takes the locks by trying, so that a signal or the bound can end the wait.
func (s *store) take(ctx context.Context, q queue) error {
	start := time.Now()
	told := time.Time{}
	for !s.tryLock() {
		now := time.Now()
		if q.longest > 0 && now.Sub(start) >= q.longest {
			return s.busy(q.longest)
		}
		if now.Sub(told) >= lockTell {
			told = now
			q.log.Info("Waiting for another preloader in the same directory", s.heldBy(now)...)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lockLook):
		}
	}
	return nil
}

// tryLock reports whether the directory is now this process's. File systems without
// locks go without, and volumes that cannot be written to without the lock's file.
func (s *store) tryLock() bool {
	if errors.Is(flock(s.lock), unix.EWOULDBLOCK) {
		return false
	}
	for {
		f, err := s.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, fileMode)
		if err != nil {
			return true
		}
		if errors.Is(flock(f), unix.EWOULDBLOCK) {
			_ = f.Close()
			return false
		}
		held, err := f.Stat()
		named, nameErr := s.root.Lstat(lockName)
		if err == nil && nameErr == nil && os.SameFile(held, named) {
			s.claim = f
			s.sign()
			return true
		}
		// Its last holder removed it before it was locked here.
		_ = f.Close()
		if err != nil || nameErr != nil && !errors.Is(nameErr, os.ErrNotExist) {
			return true
		}
	}
}

func flock(f *os.File) error {
	return retryInterrupted(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
}

// sign writes who this is into the lock's file. It is for people: without it, they
// learn less.
func (s *store) sign() {
	host, _ := os.Hostname()
	raw, err := json.Marshal(holder{Host: host, PID: os.Getpid(), Since: time.Now()})
	if err == nil && s.claim.Truncate(0) == nil {
		_, _ = s.claim.WriteAt(raw, 0)
	}
}

// unlock lets the next one in. The file goes while it is locked, so that whoever
// waits for it sees that it must look for another.
func (s *store) unlock() {
	if s.claim != nil {
		_ = s.root.Remove(lockName)
		_ = s.claim.Close()
	}
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// holder reads who holds the directory.
func (s *store) holder() (h holder) {
	f, err := s.root.OpenFile(lockName, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return holder{}
	}
	defer f.Close() //nolint:errcheck // only read
	raw, err := io.ReadAll(io.LimitReader(f, largestHolder))
	if err != nil || json.Unmarshal(raw, &h) != nil {
		return holder{}
	}
	return h
}

// wrote returns when the holder last noted that it came on, if it has begun to fetch.
func (s *store) wrote() (time.Time, bool) {
	info, err := s.root.Lstat(journalName)
	if err != nil {
		return time.Time{}, false
	}
	return info.ModTime(), true
}

func (s *store) heldBy(now time.Time) []any {
	attrs := []any{"directory", s.dir, "holder", s.holder().String()}
	if at, known := s.wrote(); known {
		attrs = append(attrs, "itLastWrote", max(0, now.Sub(at)).Round(time.Second).String()+" ago")
	}
	return attrs
}

func (s *store) busy(longest time.Duration) error {
	text := fmt.Sprintf("%s has been filling %s for more than the %v that PRELOADER_WAIT allows", s.holder(), s.dir, longest)
	if at, known := s.wrote(); known {
		text += ", and last wrote at " + at.UTC().Format(time.RFC3339)
	}
	return &ExitError{
		Code: ExitTransient, Reason: "Busy", Cause: text,
		Advice: "If it does not come on, delete its pod; otherwise the next start waits again, or raise PRELOADER_WAIT.",
	}
}
