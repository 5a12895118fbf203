// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"
	"time"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// Stickiness keeps each session on its side, by buckets: a session has a bucket for good, and the canary takes as many
// of all buckets as its weight says. So the share of sessions is the weight itself, whatever weights came before; a
// canary that gets more keeps the sessions that it has; and a side that must not have traffic has no session either.
type Stickiness struct {
	// Cookie is the cookie that keeps the bucket, 00 to 99, of a session whose header is not used.
	Cookie string
	// TTL is how long a client keeps the cookie.
	TTL time.Duration
	// Header is the header whose last two hexadecimal digits are the bucket; empty if the cookie is used.
	Header string
	// Salt decides which buckets come first, so that not every rollout tries its canary on the same people.
	Salt string
}

// Sticky returns what a spec asks for, nil if it asks for nothing. The canary's name is the salt.
func Sticky(spec v1alpha1.CanaryRolloutSpec) *Stickiness {
	if spec.Stickiness == nil {
		return nil
	}
	s := &Stickiness{Salt: spec.Canary.InferenceService + "/" + spec.Canary.Variant}
	if header := spec.Stickiness.Header; header != nil {
		s.Header = header.Name
	}
	if cookie := spec.Stickiness.Cookie; cookie != nil {
		s.Cookie, s.TTL = cookie.Name, cookie.TTL.Duration
	}
	return s
}

const (
	stickyCanary = "sticky-canary"
	stickyStable = "sticky-stable"

	cookieBuckets = 100
	headerBuckets = 256
)

// sessions returns the regular expressions of the sessions of the canary and of stable, both empty if one side has all
// traffic: then no session needs a rule of its own.
func (o Owned) sessions() (canary, stable string) {
	if o.Sticky == nil || o.Weights.Canary <= 0 || o.Weights.Stable <= 0 {
		return "", ""
	}
	return o.Sticky.regex(o.Weights.Canary, true), o.Sticky.regex(o.Weights.Canary, false)
}

// header is the one that sessions are known by.
func (s *Stickiness) header() string {
	if s.Header != "" {
		return s.Header
	}
	return "cookie"
}

// regex returns the regular expression of the sessions that a weight gives to one of the sides.
func (s *Stickiness) regex(percent int32, canary bool) string {
	if s.Header != "" {
		return `^.*` + bucketRegex(16, s.buckets(headerBuckets, percent, canary)) + `$`
	}
	return cookieRegex(s.Cookie, bucketRegex(10, s.buckets(cookieBuckets, percent, canary)))
}

// buckets tells of each of n buckets whether a weight, 0 to 100, gives it to a side. More weight only adds to the
// canary's.
func (s *Stickiness) buckets(n int, percent int32, canary bool) []bool {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s.Salt)) // never fails
	first, count := int(h.Sum32())%n, (int(percent)*n+50)/100
	of := make([]bool, n)
	for i := range n {
		of[(first+i)%n] = (i < count) == canary
	}
	return of
}

// setCookie returns the value of the Set-Cookie header that puts a session into a bucket. It may be read by scripts of no
// page and is not bound to TLS, since most callers of models inside a cluster have none.
func (s *Stickiness) setCookie(bucket int) string {
	return fmt.Sprintf("%s=%02d; Max-Age=%d; Path=/; HttpOnly; SameSite=Lax", s.Cookie, bucket, int64(s.TTL.Seconds()))
}

// bucketRegex returns a regular expression that fits the two digits of each bucket of a set, in a radix of 10 or 16.
// Buckets with the same second digits are written together, which keeps it short.
func bucketRegex(radix int, of []bool) string {
	var parts, firsts []string
	class := ""
	flush := func() {
		if class != "" {
			parts = append(parts, "["+strings.Join(firsts, "")+"]["+class+"]")
		}
		firsts = nil
	}
	for high := range radix {
		var lows strings.Builder
		for low := range radix {
			if of[high*radix+low] {
				lows.WriteString(digit(low))
			}
		}
		next := lows.String()
		if next != class {
			flush()
			class = next
		}
		firsts = append(firsts, digit(high))
	}
	flush()
	return "(?:" + strings.Join(parts, "|") + ")"
}

// digit returns a digit in all the ways to write it.
func digit(n int) string {
	lower := fmt.Sprintf("%x", n)
	if upper := strings.ToUpper(lower); upper != lower {
		return lower + upper
	}
	return lower
}

// cookieRegex returns a regular expression that fits a whole Cookie header with a cookie of exactly this name, and of a
// value that fits a regular expression, wherever it stands among others. Routes know headers only.
func cookieRegex(name, value string) string {
	return `^(.*;\s*)?` + regexp.QuoteMeta(name) + `=` + value + `\s*(;.*)?$`
}
