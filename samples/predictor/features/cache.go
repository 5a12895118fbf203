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
	// stepTimeout bounds each network step: the connection, the multi-get, all fills together.
	stepTimeout = 20 * time.Millisecond
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
	width  int
	ttl    time.Duration
	// step bounds each network step; only tests have reason to change it.
	step time.Duration
}

// endpoint is an address that is resolved at each dial, because a cache whose name does not resolve yet is only cold.
type endpoint struct{ network, address string }

func (e endpoint) Network() string { return e.network }
func (e endpoint) String() string  { return e.address }

// PickServer sends every key to the one address.
func (e endpoint) PickServer(string) (net.Addr, error) { return e, nil }

// Each visits the one address.
func (e endpoint) Each(visit func(net.Addr) error) error { return visit(e) }

// NewCache returns a cache at addr, which is host:port, or unix: and a path. It connects at the first use. Keys are
// the view, a colon and the entity's id; ttl is how long the cache may keep a vector, from a second to MaxTTL.
func NewCache(addr, view string, width int, ttl time.Duration) (*Cache, error) {
	at, err := parseEndpoint(addr)
	if err != nil {
		return nil, err
	}
	if ttl < time.Second || ttl > MaxTTL {
		return nil, fmt.Errorf("the time to live is %s, want 1s to %s", ttl, MaxTTL)
	}
	c := &Cache{client: memcache.NewFromSelector(at), prefix: view + ":", width: width, ttl: ttl}
	c.client.MaxIdleConns = maxIdle
	c.setStep(stepTimeout)
	return c, nil
}

func (c *Cache) setStep(timeout time.Duration) {
	c.step, c.client.Timeout = timeout, timeout
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

// fill stores rows until the step's time is up; what does not fit is left for a later miss.
func (c *Cache) fill(ids []string, rows map[string][]byte) error {
	deadline := time.Now().Add(c.step)
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
	seconds := int64(c.ttl / time.Second)
	return int32(seconds - rand.Int64N(seconds/10+1)) //nolint:gosec // spread, not secrecy; the flag bounds the range
}

// seal appends a checksum, so that no other bytes under the same key can pass for features.
func seal(row []byte) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, len(row)+checksumSize), row...),
		crc32.Checksum(row, castagnoli))
}

// open undoes seal and refuses a value of another length or with another checksum.
func (c *Cache) open(value []byte) ([]byte, bool) {
	if len(value) != c.width+checksumSize {
		return nil, false
	}
	row, sum := value[:c.width], binary.BigEndian.Uint32(value[c.width:])
	return row, crc32.Checksum(row, castagnoli) == sum
}
