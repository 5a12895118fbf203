// SPDX-License-Identifier: Apache-2.0

package features

import "fmt"

// maxID keeps view:id within memcached's 250 bytes.
const maxID = 200

// Source looks features up, cache first.
type Source struct {
	// Store answers what the cache does not; it must not be nil.
	Store *Store
	// Cache may be nil: then every lookup goes to the store.
	Cache *Cache
}

// Stats says where the features of one request came from. Every distinct id is either a hit or a miss; without a
// cache both counts stay zero.
type Stats struct {
	// Cached is true if a cache was asked.
	Cached bool
	// Hits and Misses count distinct ids.
	Hits, Misses int
	// Trouble is the cache's error, if it had one. The lookup went on without it.
	Trouble error
}

// UnknownError says that the store holds no features for an id, or that the id can name none.
type UnknownError struct {
	// Index is the place of the id in the request.
	Index int
	// Reason says what is wrong with it.
	Reason string
}

// Error returns the reason.
func (e *UnknownError) Error() string { return e.Reason }

// Lookup returns a vector for every id, in order; the caller must not write to them. It asks the cache once for all
// of them, takes what is missing from the store, and fills the cache. The error is an *UnknownError.
func (s *Source) Lookup(ids []string) ([][]byte, Stats, error) {
	for i, id := range ids {
		if !validID(id) {
			reason := fmt.Sprintf("must be 1 to %d printable ASCII characters", maxID)
			return nil, Stats{}, &UnknownError{Index: i, Reason: reason}
		}
	}
	distinct := unique(ids)
	stats := Stats{Cached: s.Cache != nil}
	found := map[string][]byte{}
	if s.Cache != nil {
		found, stats.Trouble = s.Cache.get(distinct)
		stats.Hits = len(found)
		stats.Misses = len(distinct) - stats.Hits
	}
	var missed []string
	for _, id := range distinct {
		if found[id] != nil {
			continue
		}
		if row, ok := s.Store.Get(id); ok {
			found[id], missed = row, append(missed, id)
		}
	}
	rows := make([][]byte, len(ids))
	for i, id := range ids {
		if rows[i] = found[id]; rows[i] == nil {
			return nil, stats, &UnknownError{Index: i, Reason: fmt.Sprintf("the feature store holds no %q", id)}
		}
	}
	// A cache that just failed to answer would only cost the fill's time as well.
	if s.Cache != nil && stats.Trouble == nil {
		stats.Trouble = s.Cache.fill(missed, found)
	}
	return rows, stats, nil
}

// validID keeps ids to what a memcached key may hold.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return false
		}
	}
	return true
}

// unique returns the ids in order of first appearance.
func unique(ids []string) []string {
	seen := make(map[string]bool, len(ids))
	out := make([]string, 0, len(ids))
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}
