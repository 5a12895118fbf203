// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"cmp"
	"crypto/md5" //nolint:gosec // Ketama is defined on MD5; nothing here rests on its security.
	"encoding/binary"
	"slices"
	"strconv"
)

const (
	// digestsPerServer is the number of MD5 sums that give a server its points; each sum holds four points.
	digestsPerServer = 40
	pointsPerServer  = 4 * digestsPerServer
)

// Ring says which server owns a key: ketama with 160 points a server, as libmemcached's ketama_weighted and twemproxy
// (hash md5, distribution ketama) compute it for servers of equal weight. It depends on the names of the servers
// alone, never on their addresses or on the order of the list. A Ring does not change once made and is safe for
// concurrent use.
type Ring struct {
	servers []Server
	points  []point
	tag     [2]byte
	tagged  bool
}

// point is one place on the circle: every key that hashes to at most value, and above the point before it, belongs to
// servers[server].
type point struct {
	value  uint32
	server uint32
}

// NewRing returns the ring of the servers. hashTag is empty, or two characters such as "{}": of a key that holds text
// between the two, only that text is hashed, so that keys with the same tag share a server. It fails on a name or an
// address that Document would refuse, and on two servers with one name. No servers is a valid ring that owns nothing.
func NewRing(hashTag string, servers []Server) (*Ring, error) {
	if err := validateHashTag(hashTag); err != nil {
		return nil, err
	}
	if err := validateServers(servers); err != nil {
		return nil, err
	}
	r := &Ring{servers: slices.Clone(servers), points: make([]point, 0, pointsPerServer*len(servers))}
	if hashTag != "" {
		r.tag, r.tagged = [2]byte{hashTag[0], hashTag[1]}, true
	}
	// Two servers may share a point; in name order the tie falls the same way whatever the order of the list.
	slices.SortFunc(r.servers, func(a, b Server) int { return cmp.Compare(a.ringName(), b.ringName()) })
	for i, s := range r.servers {
		r.points = appendPoints(r.points, s.ringName(), uint32(i))
	}
	slices.SortFunc(r.points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.value, b.value), cmp.Compare(a.server, b.server))
	})
	return r, nil
}

// Owner returns the server that owns the key; false when the ring has no servers.
func (r *Ring) Owner(key []byte) (Server, bool) {
	i := r.owner(key)
	if i < 0 {
		return Server{}, false
	}
	return r.servers[i], true
}

// Servers returns the servers of the ring in the order of their names.
func (r *Ring) Servers() []Server {
	return slices.Clone(r.servers)
}

// Len returns the number of servers.
func (r *Ring) Len() int {
	return len(r.servers)
}

// owner returns the index of the key's owner in servers, or -1 when there are none.
func (r *Ring) owner(key []byte) int {
	switch len(r.servers) {
	case 0:
		return -1
	case 1:
		return 0
	}
	value := keyPoint(r.hashed(key))
	i, _ := slices.BinarySearchFunc(r.points, value, func(p point, v uint32) int { return cmp.Compare(p.value, v) })
	if i == len(r.points) {
		i = 0
	}
	return int(r.points[i].server)
}

// hashed returns the part of the key that is hashed: the text of the first tag, if it is not empty, or the whole key.
func (r *Ring) hashed(key []byte) []byte {
	if !r.tagged {
		return key
	}
	start := bytes.IndexByte(key, r.tag[0])
	if start < 0 {
		return key
	}
	length := bytes.IndexByte(key[start+1:], r.tag[1])
	if length <= 0 {
		return key
	}
	return key[start+1 : start+1+length]
}

// appendPoints appends the points of the server with this name.
func appendPoints(points []point, name string, server uint32) []point {
	text := append(make([]byte, 0, len(name)+len("-39")), name...)
	text = append(text, '-')
	for k := range digestsPerServer {
		sum := md5.Sum(strconv.AppendInt(text, int64(k), 10)) //nolint:gosec // See the import.
		for quarter := range 4 {
			points = append(points, point{binary.LittleEndian.Uint32(sum[4*quarter:]), server})
		}
	}
	return points
}

// keyPoint returns the place of a key on the circle.
func keyPoint(key []byte) uint32 {
	sum := md5.Sum(key) //nolint:gosec // See the import.
	return binary.LittleEndian.Uint32(sum[:])
}
