// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// configMap is a folder as the kubelet mounts a ConfigMap: ring.json is a link to ..data/ring.json, and ..data a link to
// the folder of the version in force.
type configMap struct {
	t       *testing.T
	dir     string
	version int
}

func (m *configMap) path() string {
	return filepath.Join(m.dir, "ring.json")
}

// publish swaps ..data for a new folder with the content, or with no file at all.
func (m *configMap) publish(content *string) {
	m.t.Helper()
	m.version++
	folder := "..version_" + strings.Repeat("i", m.version)
	check := func(err error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	check(os.Mkdir(filepath.Join(m.dir, folder), 0o755))
	if content != nil {
		check(os.WriteFile(filepath.Join(m.dir, folder, "ring.json"), []byte(*content), 0o644))
	}
	check(os.Symlink(folder, filepath.Join(m.dir, "..data_tmp")))
	check(os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")))
	if m.version == 1 {
		check(os.Symlink(filepath.Join("..data", "ring.json"), m.path()))
	}
}

func TestFollowFileThroughItsLife(t *testing.T) {
	m := &configMap{t: t, dir: t.TempDir()}
	c := NewClient(t.Context(), ClientOptions{})
	if err := c.SetRing(ringDocument()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var following sync.WaitGroup
	following.Go(func() { c.Follow(ctx, &FileSource{Path: m.path(), Interval: time.Millisecond}) })
	ring := func(what string, epoch int64, servers int) {
		t.Helper()
		eventually(t, what, func() bool {
			rt := c.route.Load()
			return rt.epoch == epoch && rt.ring.Len() == servers
		})
	}
	failed := func(what string, n uint64) {
		t.Helper()
		eventually(t, what, func() bool { return c.ringErrors.Load() == n })
	}
	publish := func(content string) { m.publish(&content) }

	ring("no file is an empty ring", 0, 0)
	publish(ringJSON)
	ring("the first document is read", 7, 2)
	publish(ringJSON[:100])
	failed("half a document is noticed", 1)
	ring("half a document changes nothing", 7, 2)
	publish("")
	failed("an empty file is noticed", 2)
	publish(strings.Repeat("x", MaxDocumentBytes+1))
	failed("a huge file is noticed", 3)
	publish(strings.Replace(ringJSON, `"epoch": 7`, `"epoch": 8`, 1))
	ring("the next document is read", 8, 2)
	publish(`{"epoch":9,"hash":"KetamaMD5","servers":[]}`)
	ring("the ring is emptied", 9, 0)
	publish(ringJSON)
	ring("the ring is filled again", 7, 2)
	m.publish(nil)
	ring("a file that is gone is an empty ring", 0, 0)
	if n := c.ringErrors.Load(); n != 3 {
		t.Errorf("%d documents counted as unusable, want 3", n)
	}
	cancel()
	following.Wait()
}

func TestFileSourceTellsOfADocumentOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	if err := os.WriteFile(path, []byte(ringJSON), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	documents := make(chan int64, 100)
	var watching sync.WaitGroup
	watching.Go(func() {
		(&FileSource{Path: path, Interval: time.Millisecond}).Watch(ctx, func(d *Document, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			documents <- d.Epoch
		})
	})
	if epoch := <-documents; epoch != 7 {
		t.Errorf("epoch = %d, want 7", epoch)
	}
	// The same content in another file is the same document.
	next := path + ".next"
	for _, content := range []string{ringJSON, strings.Replace(ringJSON, `"epoch": 7`, `"epoch": 8`, 1)} {
		if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	if epoch := <-documents; epoch != 8 {
		t.Errorf("epoch = %d, want 8 next", epoch)
	}
	cancel()
	watching.Wait()
}

func TestFileSourceReportsAFileThatCannotBeRead(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	errs := make(chan error, 1)
	// A folder opens, but has no content.
	go (&FileSource{Path: t.TempDir()}).Watch(ctx, func(_ *Document, err error) { errs <- err })
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "reading ring document") {
		t.Errorf("error = %v, want one about reading", err)
	}
}
