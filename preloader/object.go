// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"
)

// object is one thing in the store, as far as its listing, a HEAD or a GET told.
type object struct {
	key      string
	size     int64
	etag     string
	modified time.Time
	// sum is the store's checksum of the content, if it named one.
	sum checksum
	// part is the size of the pieces that the object was uploaded in, all but
	// the last; 0 if that is not known or was not asked.
	part int64
	// encrypted means that the ETag is not an MD5 even if it looks like one.
	encrypted bool
}

// version names the content that all requests for a file must see. Some servers
// have no ETag for files that were put beneath them; their date must do.
func (o object) version() string {
	if o.etag != "" {
		return o.etag
	}
	return "modified " + o.modified.UTC().Format(time.RFC3339)
}

// ifMatch returns the condition that the object still has its ETag, or nil if it
// has none that can be asked for: a weak one, which proxies make that change
// answers, matches nothing. Every answer's ETag is compared in any case.
func (o object) ifMatch() *string {
	if o.etag == "" || strings.HasPrefix(o.etag, "W/") {
		return nil
	}
	tag := `"` + o.etag + `"`
	return &tag
}

// checksum is a value that the store keeps for an object.
type checksum struct {
	// algorithm is S3's name, such as CRC64NVME; empty if there is none.
	algorithm string
	// value is base64, with "-N" behind it if it is composite.
	value string
	// composite means a checksum of the checksums of the parts.
	composite bool
}

// body is the content of one answer to a ranged request.
type body struct {
	io.ReadCloser
	// object is what the answer's headers say, but for its size.
	object object
}

// source is where objects come from. Errors are a *ExitError if no retry can
// help, errChanged, a *throttled, or anything else for a passing trouble.
type source interface {
	// list returns the objects whose keys start with prefix, in key order. If
	// one of them is prefix itself, then it alone is returned.
	list(ctx context.Context, prefix string, siblings bool) ([]object, error)
	// head returns the object as it is now, with its checksum.
	head(ctx context.Context, key string) (object, error)
	// firstPart returns the size of the first piece of an upload in pieces.
	firstPart(ctx context.Context, key string) (int64, error)
	// get opens the bytes of s. The answer is checked to be exactly these bytes
	// of the version that o names.
	get(ctx context.Context, o object, s span) (body, error)
	// open is get over a line, which is cheaper for many requests.
	open(ctx context.Context, l *line, o object, s span) (body, error)
}

// errChanged says that the object is no longer the version that was asked for.
var errChanged = errors.New("the object changed while it was being read")

// throttled says that the store asks for fewer requests.
type throttled struct {
	err error
	// after is how long the store asks to wait; 0 if it does not say.
	after time.Duration
}

func (t *throttled) Error() string { return t.err.Error() }
func (t *throttled) Unwrap() error { return t.err }

// protocolError says that an answer contradicts the request or itself.
type protocolError struct{ text string }

func (p *protocolError) Error() string { return p.text }

func trimETag(etag string) string { return strings.Trim(etag, `"`) }
