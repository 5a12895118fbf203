// SPDX-License-Identifier: Apache-2.0

package memcached

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
)

const (
	// HashKetamaMD5 is the one hash of a ring document so far: see Ring.
	HashKetamaMD5 = "KetamaMD5"

	// MaxServers is the most servers that a ring may hold.
	MaxServers = 1000

	// MaxFormer is the most former rings that a document may name.
	MaxFormer = 8

	// MaxDocumentBytes is the largest ring document that ParseDocument reads: what a ConfigMap can hold.
	MaxDocumentBytes = 1 << 20

	// defaultPort is memcached's own. Ketama leaves it out of a server's name, as libmemcached and twemproxy do.
	defaultPort = "11211"

	// maxNameBytes is the longest DNS name with a port behind it.
	maxNameBytes = 253 + len(":65535")

	// maxIdentityBytes is the longest inter that memcached tells of without cutting it.
	maxIdentityBytes = 126
)

// Document publishes a ring to those who read and write through it. Its JSON form is the content of the key ring.json
// of a Memcached's ring ConfigMap. Readers ignore fields that they do not know.
type Document struct {
	// Epoch counts the changes of the ring; it is 0 or more.
	Epoch int64 `json:"epoch"`
	// Hash names the algorithm; only HashKetamaMD5 is known.
	Hash string `json:"hash"`
	// HashTag is empty, or the two characters around the part of a key that is hashed, such as "{}".
	HashTag string `json:"hashTag,omitempty"`
	// Servers are the members of the ring, at most MaxServers; none is a cache that always misses.
	Servers []Server `json:"servers"`
	// Former are the rings before, by the names of their servers, at most MaxFormer: others may still go by them for
	// SettleTime. A ring without names moves every key.
	Former [][]string `json:"former,omitempty"`
}

// Server is one slot of a ring.
type Server struct {
	// Name is the identity of the slot: a DNS name that outlives the pod behind it, with ":port" unless the port is
	// 11211. Only names decide where keys live.
	Name string `json:"name"`
	// Address is where the server listens now, "host:port"; empty means that Name is dialled.
	Address string `json:"address,omitempty"`
	// Identity is what the server's `stats settings` give as inter: the addresses that its -l names, in the words in
	// which it does. Whoever else is found at the address is not asked, since an address may have been given to another
	// cache by the time that it is dialled. Empty means that anyone will do.
	Identity string `json:"identity,omitempty"`
}

// DialAddress returns the "host:port" to dial.
func (s Server) DialAddress() string {
	if s.Address != "" {
		return s.Address
	}
	if _, _, err := net.SplitHostPort(s.Name); err == nil {
		return s.Name
	}
	return net.JoinHostPort(s.Name, defaultPort)
}

// ringName returns the name as ketama hashes it.
func (s Server) ringName() string {
	return strings.TrimSuffix(s.Name, ":"+defaultPort)
}

// Ring returns the ring that the document describes.
func (d *Document) Ring() (*Ring, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	return NewRing(d.HashTag, d.Servers)
}

// formerRings returns the rings by which others may still go.
func (d *Document) formerRings() ([]*Ring, error) {
	var rings []*Ring
	for _, names := range d.Former {
		ring, err := NewRing(d.HashTag, serversNamed(names))
		if err != nil {
			return nil, err
		}
		rings = append(rings, ring)
	}
	return rings, nil
}

// Marshal returns the document as JSON, the same bytes for the same ring in whatever order its servers are listed. It
// fails on a document that ParseDocument would refuse.
func (d *Document) Marshal() ([]byte, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	sorted := *d
	sorted.Servers = slices.Clone(d.Servers)
	if sorted.Servers == nil {
		sorted.Servers = []Server{}
	}
	sorted.Former = make([][]string, len(d.Former))
	for i, names := range d.Former {
		sorted.Former[i] = append([]string{}, names...)
		slices.Sort(sorted.Former[i])
	}
	slices.SortFunc(sorted.Servers, func(a, b Server) int { return cmp.Compare(a.ringName(), b.ringName()) })
	data, err := json.MarshalIndent(&sorted, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("writing ring document: %w", err)
	}
	return append(data, '\n'), nil
}

// ParseDocument reads a document of at most MaxDocumentBytes and checks all of it. The error names the field at fault.
func ParseDocument(data []byte) (*Document, error) {
	if len(data) > MaxDocumentBytes {
		return nil, fmt.Errorf("reading ring document: %d bytes are more than %d", len(data), MaxDocumentBytes)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	var d Document
	if err := decoder.Decode(&d); err != nil {
		return nil, fmt.Errorf("reading ring document: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading ring document: text follows the JSON object")
	}
	if err := d.validate(); err != nil {
		return nil, fmt.Errorf("reading ring document: %w", err)
	}
	return &d, nil
}

func (d *Document) validate() error {
	if d.Epoch < 0 {
		return fmt.Errorf("epoch: %d is less than 0", d.Epoch)
	}
	if d.Hash != HashKetamaMD5 {
		return fmt.Errorf("hash: %q is not known; use %q", d.Hash, HashKetamaMD5)
	}
	if err := validateHashTag(d.HashTag); err != nil {
		return err
	}
	if err := validateServers(d.Servers); err != nil {
		return err
	}
	if len(d.Former) > MaxFormer {
		return fmt.Errorf("former: %d rings are more than %d", len(d.Former), MaxFormer)
	}
	for i, names := range d.Former {
		if err := validateServers(serversNamed(names)); err != nil {
			return fmt.Errorf("former[%d]: %w", i, err)
		}
	}
	return nil
}

// serversNamed are servers whose addresses nobody needs.
func serversNamed(names []string) []Server {
	servers := make([]Server, len(names))
	for i, name := range names {
		servers[i].Name = name
	}
	return servers
}

func validateHashTag(tag string) error {
	if tag == "" {
		return nil
	}
	if len(tag) != 2 || !isGraphic(tag) {
		return fmt.Errorf("hashTag: %q is not two visible ASCII characters; use \"{}\" or leave it empty", tag)
	}
	return nil
}

func validateServers(servers []Server) error {
	if len(servers) > MaxServers {
		return fmt.Errorf("servers: %d are more than %d", len(servers), MaxServers)
	}
	index := make(map[string]int, len(servers))
	for i, s := range servers {
		if err := validateName(s.Name); err != nil {
			return fmt.Errorf("servers[%d].name: %w", i, err)
		}
		if s.Address != "" {
			if err := validateHostPort(s.Address); err != nil {
				return fmt.Errorf("servers[%d].address: %w", i, err)
			}
		}
		if len(s.Identity) > maxIdentityBytes || !isGraphic(s.Identity) {
			return fmt.Errorf("servers[%d].identity: %q is not 0 to %d visible ASCII characters", i,
				s.Identity, maxIdentityBytes)
		}
		if j, ok := index[s.ringName()]; ok {
			return fmt.Errorf("servers[%d].name: %q is the name of servers[%d] too; names must differ", i, s.Name, j)
		}
		index[s.ringName()] = i
	}
	return nil
}

// validateName accepts "host" and "host:port".
func validateName(name string) error {
	if name == "" {
		return errors.New("it is empty; use the DNS name of the server")
	}
	if len(name) > maxNameBytes {
		return fmt.Errorf("%d bytes are more than %d", len(name), maxNameBytes)
	}
	if strings.ContainsAny(name, ":[]") {
		return validateHostPort(name)
	}
	return validateHost(name)
}

func validateHostPort(address string) error {
	if len(address) > maxNameBytes {
		return fmt.Errorf("%d bytes are more than %d", len(address), maxNameBytes)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not \"host:port\"", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%q has no port from 1 to 65535", address)
	}
	return validateHost(host)
}

func validateHost(host string) error {
	if host == "" {
		return errors.New("the host is empty")
	}
	for _, c := range []byte(host) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && !strings.ContainsRune(".-_:%", rune(c)) {
			return fmt.Errorf("%q holds a character that no host name has", host)
		}
	}
	return nil
}

// isGraphic reports whether the text is visible ASCII without spaces.
func isGraphic(text string) bool {
	for _, c := range []byte(text) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return true
}
