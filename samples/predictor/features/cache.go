// SPDX-License-Identifier: Apache-2.0

package features

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

const (
	// maxIdle is how many connections are kept for the next requests.
	maxIdle = 32
	// checksumSize is the length of the CRC-32C that follows each cached vector.
	checksumSize = 4
)

// MaxTTL is the longest that memcached counts as a span; it would read anything above as a date.
const MaxTTL = 30 * 24 * time.Hour

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Cache keeps feature vectors in one memcached address, which may be a proxy in front of many. It is safe for use by
// many goroutines.
type Cache struct {
	client *memcache.Client
	prefix string
	opts   CacheOptions
}

// CacheOptions say where the cache is and how it is used.
type CacheOptions struct {
	// Address is host:port, or unix: and a path.
	Address string
	// View names the features and their version; it prefixes every key, with a colon.
	View string
	// Width is the number of bytes of a vector.
	Width int
	// TTL is how long the cache may keep a vector, from a second to MaxTTL.
	TTL time.Duration
	// Timeout bounds each network step: connecting, the multi-get, all fills together. It must be positive.
	Timeout time.Duration
}

// endpoint is an address that is resolved at each dial, because a cache whose name does not resolve yet is only cold.
type endpoint struct{ network, address string }

func (e endpoint) Network() string { return e.network }
func (e endpoint) String() string  { return e.address }

// PickServer sends every key to the one address.
func (e endpoint) PickServer(string) (net.Addr, error) { return e, nil }

// Each visits the one address.
func (e endpoint) Each(visit func(net.Addr) error) error { return visit(e) }

// NewCache returns a cache that connects at its first use. It fails only on options that make no sense.
func NewCache(opts CacheOptions) (*Cache, error) {
	at, err := parseEndpoint(opts.Address)
	if err != nil {
		return nil, err
	}
	if opts.TTL < time.Second || opts.TTL > MaxTTL {
		return nil, fmt.Errorf("the time to live is %s, want 1s to %s", opts.TTL, MaxTTL)
	}
	if opts.Timeout <= 0 {
		return nil, fmt.Errorf("the timeout is %s, want a positive one", opts.Timeout)
	}
	c := &Cache{client: memcache.NewFromSelector(at), prefix: opts.View + ":", opts: opts}
	c.client.Timeout, c.client.MaxIdleConns = opts.Timeout, maxIdle
	return c, nil
}

func parseEndpoint(addr string) (endpoint, error) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if path == "" {
			return endpoint{}, errors.New("unix: must be followed by a path")
		}
		return endpoint{network: "unix", address: path}, nil
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return endpoint{}, errors.New("the address must be host:port or unix:/path")
	}
	return endpoint{network: "tcp", address: addr}, nil
}

// get asks for all ids at once. It returns what it found, unharmed, and an error if the cache is in trouble.
func (c *Cache) get(ids []string) (map[string][]byte, error) {
	keys := make([]string, len(ids))
	for i, id := range ids {
		keys[i] = c.prefix + id
	}
	items, err := c.client.GetMulti(keys)
	rows := make(map[string][]byte, len(items))
	for i, id := range ids {
		if item, ok := items[keys[i]]; ok {
			if row, ok := c.open(item.Value); ok {
				rows[id] = row
			}
		}
	}
	return rows, err
}

// fill stores rows until the timeout; what does not fit is left for a later miss.
func (c *Cache) fill(ids []string, rows map[string][]byte) error {
	deadline := time.Now().Add(c.opts.Timeout)
	for _, id := range ids {
		if time.Now().After(deadline) {
			return nil
		}
		item := &memcache.Item{Key: c.prefix + id, Value: seal(rows[id]), Expiration: c.expiration()}
		if err := c.client.Set(item); err != nil {
			return err
		}
	}
	return nil
}

// expiration shortens the time to live by up to a tenth, so that vectors stored together do not expire together.
func (c *Cache) expiration() int32 {
	seconds := int64(c.opts.TTL / time.Second)
	return int32(seconds - rand.Int64N(seconds/10+1))
}

// seal appends a checksum, so that no other bytes under the same key can pass for features.
func seal(row []byte) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(row)+checksumSize), row...),
		crc32.Checksum(row, castagnoli))
}

// open undoes seal and refuses a value of another length or with another checksum.
func (c *Cache) open(value []byte) ([]byte, bool) {
	width := c.opts.Width
	if len(value) != width+checksumSize {
		return nil, false
	}
	row, sum := value[:width], binary.BigEndian.Uint32(value[width:])
	return row, crc32.Checksum(row, castagnoli) == sum
}
