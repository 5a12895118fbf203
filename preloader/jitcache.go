// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"serverless.xyz/outrigger/preloader/jitcache"
	"serverless.xyz/outrigger/preloader/quantity"
)

// JITCacheOptions say where compiled kernels are kept and which of them fit.
type JITCacheOptions struct {
	// URI is the folder in S3 that holds caches, one below it for each key; empty for none.
	URI string
	// Dir is where trees are unpacked, each in a folder of its name.
	Dir string
	// Key is what a cache depends on, as far as it is given; the rest is found out.
	Key jitcache.Key
	// Size bounds what is unpacked, in bytes.
	Size int64
	// Deadline bounds the time that a pull spends on caches: compiling anew takes minutes too.
	Deadline time.Duration
	// Models are directories with fetched models, whose digest is part of what is published.
	Models []string
}

// CacheState says what came of the compiled kernels of a pull.
type CacheState string

const (
	// CacheReady says that trees were fetched and are in place.
	CacheReady CacheState = "ready"
	// CacheInPlace says that every tree was there already.
	CacheInPlace CacheState = "inPlace"
	// CacheAbsent says that nobody has published a cache for this key.
	CacheAbsent CacheState = "absent"
	// CacheUnused says that there may be one, but that it could not be used.
	CacheUnused CacheState = "unused"
)

// CacheReport is what came of the compiled kernels of a pull. Whatever it was, the
// model is not touched by it.
type CacheReport struct {
	State CacheState `json:"state"`
	// Reason names in one word why the state is CacheUnused.
	Reason string `json:"reason,omitempty"`
	// Cause says why the state is CacheUnused or CacheAbsent.
	Cause string `json:"cause,omitempty"`
	// Key is the digest of the key.
	Key string `json:"key,omitempty"`
	// Trees are those that are in place.
	Trees []string `json:"trees,omitempty"`
	// Files and Bytes count what was unpacked, Fetched bytes that came over the network.
	Files   int   `json:"files,omitempty"`
	Bytes   int64 `json:"bytes,omitempty"`
	Fetched int64 `json:"fetched,omitempty"`
	// Seconds is the wall time.
	Seconds float64 `json:"seconds"`
}

// String is the report in a clause.
func (r *CacheReport) String() string {
	switch r.State {
	case CacheReady:
		return fmt.Sprintf(
			"compiled kernels ready for %s (%d files, %s)",
			strings.Join(r.Trees, ", "),
			r.Files,
			quantity.FormatBytes(r.Bytes),
		)
	case CacheInPlace:
		return "compiled kernels were there already for " + strings.Join(r.Trees, ", ")
	case CacheAbsent, CacheUnused:
	}
	return "no compiled kernels: " + r.Cause
}

// shorten keeps the report within a termination message.
func (r *CacheReport) shorten() {
	const longest = 400
	if len(r.Cause) > longest {
		r.Cause = strings.ToValidUTF8(r.Cause[:longest], "") + "…"
	}
	const most = 16
	r.Trees = r.Trees[:min(len(r.Trees), most)]
}

// caches is what knows the caches of one key in the store.
type caches struct {
	opts Options
	log  *slog.Logger
	src  patient
	// folder is the URI without scheme and bucket, ending in a slash.
	folder string
	bucket string
	key    jitcache.Key
}

// openCaches settles the key and reaches for the store.
func openCaches(ctx context.Context, opts Options, models []string, log *slog.Logger) (*caches, error) {
	at, err := parseSource(opts.JIT.URI)
	if err != nil {
		return nil, err
	}
	if at.kind != sourceS3 {
		return nil, configFailure(
			"Write it as s3://bucket/path.",
			"PRELOADER_JIT_CACHE_URI is %q, which is not in S3",
			opts.JIT.URI,
		)
	}
	c := &caches{opts: opts, log: log, bucket: at.bucket, folder: strings.Trim(at.path, "/") + "/"}
	c.folder = strings.TrimPrefix(c.folder, "/")
	if c.key, err = cacheKey(opts, models); err != nil {
		return nil, err
	}
	client, err := newS3Client(ctx, opts, opts.Conns)
	if err != nil {
		return nil, err
	}
	c.src = patient{
		source: newS3Source(client, at.bucket, opts), attempts: opts.Attempts, stall: opts.Stall, retries: &atomic.Int64{},
		throttle: newThrottle(opts.Conns),
	}
	return c, nil
}

// cacheKey completes the key with what the machine and the models say.
func cacheKey(opts Options, models []string) (jitcache.Key, error) {
	key := opts.JIT.Key.Under(jitcache.Machine(os.DirFS("/")))
	if key[jitcache.KeyModel] == "" {
		digest, err := modelDigest(models)
		if err != nil {
			return nil, err
		}
		if digest != "" {
			key[jitcache.KeyModel] = digest
		}
	}
	switch key.Missing() {
	case jitcache.KeyEngine:
		return nil, configFailure("Put engine=IMAGE, best with its digest, into PRELOADER_JIT_CACHE_KEY.",
			"PRELOADER_JIT_CACHE_KEY does not say which engine the compiled kernels are for")
	case jitcache.KeyGPU:
		return nil, configFailure("Put gpu=NAME into PRELOADER_JIT_CACHE_KEY, gpu=none for engines without one.",
			"this machine does not say which GPU it has")
	}
	return key, nil
}

// modelDigest names the content of fetched models, wherever they came from; it is empty
// if the directories hold none that was fetched.
func modelDigest(dirs []string) (string, error) {
	hash := sha256.New()
	found := false
	for _, dir := range dirs {
		root, err := os.OpenRoot(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", diskFailure(dir, err)
		}
		marker, err := loadMarker(root, func(*FileRecord) {})
		if err == nil && marker != nil { // which is whole
			_, err = loadMarker(root, func(f *FileRecord) {
				fmt.Fprintf(hash, "%q %d %s %s\n", f.Path, f.Size, f.CRC, f.Sum)
			})
		}
		_ = root.Close()
		if err != nil {
			return "", diskFailure(dir, err)
		}
		found = found || marker != nil
	}
	if !found {
		return "", nil
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}

// home is the folder of the key.
func (c *caches) home() string { return c.folder + c.key.Digest() + "/" }

func (c *caches) uri(key string) string { return "s3://" + c.bucket + "/" + key }

// manifest reads what the store has for the key, and the version of what it read. Both
// are empty if there is nothing.
func (c *caches) manifest(ctx context.Context) (*jitcache.Manifest, string, error) {
	return c.readManifest(ctx, c.home()+jitcache.ManifestName, c.key)
}

// readManifest reads one manifest, again if it is replaced meanwhile.
func (c *caches) readManifest(ctx context.Context, at string, key jitcache.Key) (*jitcache.Manifest, string, error) {
	for n := 1; ; n++ {
		m, version, err := c.tryManifest(ctx, at, key)
		if !errors.Is(err, errChanged) || n == manifestTimes {
			return m, version, err
		}
	}
}

func (c *caches) tryManifest(ctx context.Context, at string, key jitcache.Key) (*jitcache.Manifest, string, error) {
	o, err := c.src.head(ctx, at)
	if isNotFound(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	if o.size > jitcache.LongestManifest {
		return nil, "", badCache(c.uri(at), fmt.Errorf("it has %d bytes, more than %d", o.size, jitcache.LongestManifest))
	}
	var raw []byte
	err = c.src.read(ctx, o, span{n: o.size}, func(r io.Reader, _ object) error {
		var err error
		raw, err = io.ReadAll(r)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	m, err := jitcache.ParseManifest(raw, key)
	if err != nil {
		return nil, "", badCache(c.uri(at), err)
	}
	return m, o.etag, nil
}

func isNotFound(err error) bool {
	f, ok := errors.AsType[*ExitError](err)
	return ok && f.Code == ExitNotFound && f.Reason == "NotFound"
}

func badCache(uri string, err error) *ExitError {
	return &ExitError{
		Code: ExitIntegrity, Reason: "BadCache", Cause: uri + " is no cache that can be used", Err: err,
		Advice: "Publish it again with publish-cache --replace=true.",
	}
}

const (
	// mostCompared bounds how many manifests are read to explain why none fits.
	mostCompared = 16
	// mostListed bounds how many objects are listed for that: two pages.
	mostListed = 2000
)

// explain says why there is no cache for the key, by the one that comes closest.
func (c *caches) explain(ctx context.Context) string {
	text := "none is published for " + c.key.String()
	if c.folder == "" {
		return text // all of a bucket would be listed
	}
	var found []object
	seen := 0
	err := each(ctx, c.src, c.folder, false, func(o object) bool {
		if strings.HasSuffix(o.key, "/"+jitcache.ManifestName) {
			found = append(found, o)
		}
		seen++
		return seen < mostListed
	})
	if err != nil {
		return text
	}
	slices.SortFunc(found, func(a, b object) int { return compareInt64(b.modified, a.modified) })
	var mu sync.Mutex
	var closest *jitcache.Manifest
	compared := slices.Values(found[:min(len(found), mostCompared)])
	_ = eachOf(ctx, c.opts.Conns, compared, func(ctx context.Context, o object) error {
		m, _, err := c.readManifest(ctx, o.key, nil)
		mu.Lock()
		defer mu.Unlock()
		if err == nil && m != nil && (closest == nil || len(c.key.Differences(m.Key)) < len(c.key.Differences(closest.Key))) {
			closest = m
		}
		return nil // what cannot be read explains nothing
	})
	if closest == nil {
		return text
	}
	var other []string
	for _, name := range c.key.Differences(closest.Key) {
		other = append(other, name+"="+cmp.Or(closest.Key[name], "(not given)"))
	}
	return text + "; the closest one has " + strings.Join(other, ", ")
}

// cacheMarkerName is the file in a cache directory that says where its trees came from.
const cacheMarkerName = ".preloader-jit.json"

// cacheMarker tells what a pull put into a cache directory from what engines made.
type cacheMarker struct {
	// Trees has the digest of the key for each tree that was published under it.
	Trees map[string]string `json:"trees"`
}

func readCacheMarker(dir string) cacheMarker {
	var m cacheMarker
	if raw, err := os.ReadFile(dir + "/" + cacheMarkerName); err != nil || json.Unmarshal(raw, &m) != nil {
		return cacheMarker{} // then nothing is known to be a pull's
	}
	return m
}

// treesIn tells which of the manifest's trees are in the directory: those that came from
// a publication for its key, each put there in one step and so whole, and folders that
// hold something else. An empty folder is none.
func treesIn(dir string, m *jitcache.Manifest) (ours, others []string) {
	marker, key := readCacheMarker(dir), m.Key.Digest()
	for _, t := range m.Trees {
		entries, err := os.ReadDir(dir + "/" + t.Name)
		switch {
		case err != nil && errors.Is(err, os.ErrNotExist), err == nil && len(entries) == 0:
		case err == nil && marker.Trees[t.Name] == key:
			ours = append(ours, t.Name)
		default:
			others = append(others, t.Name)
		}
	}
	return ours, others
}

// occupied says that none of what is published can be taken.
func occupied(dir string, others []string) *ExitError {
	return &ExitError{
		Code: ExitConfig, Reason: "Occupied",
		Cause:  strings.Join(others, ", ") + " in " + dir + " hold something else than what is published",
		Advice: "If an engine has compiled that, all is well; empty the folders to take what is published.",
	}
}
