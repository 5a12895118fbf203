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
// There may be very many, so what a listing does not tell is apart.
type object struct {
	key  string
	size int64
	etag string
	// modified is when it was made, in seconds since 1970.
	modified int64
	// answer is what a HEAD or a GET told beyond that; nil if there was none.
	answer *answer
}

// answer is what the answer to a HEAD or a GET tells of an object.
type answer struct {
	// sum is the store's checksum of the content, if it named one.
	sum checksum
	// part is the size of the pieces that the object was uploaded in, all but
	// the last; 0 if that is not known or was not asked.
	part int64
	// encrypted means that the ETag is not an MD5 even if it looks like one.
	encrypted bool
}

// told returns what is known beyond the listing.
func (o object) told() answer {
	if o.answer == nil {
		return answer{}
	}
	return *o.answer
}

// age returns how long ago the object was made.
func (o object) age(now time.Time) time.Duration { return now.Sub(time.Unix(o.modified, 0)) }

// version names the content that all requests for a file must see. Some servers
// have no ETag for files that were put beneath them; their date must do.
func (o object) version() string {
	if o.etag != "" {
		// A proxy may call a tag weak in some answers, and not in others.
		return strings.TrimPrefix(o.etag, `W/"`)
	}
	return "modified " + time.Unix(o.modified, 0).UTC().Format(time.RFC3339)
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

// exactly returns the body for an answer of so many bytes, whose length may not be said.
func (b body) exactly(n int64, length *int64) body {
	if length == nil {
		b.ReadCloser = &exactBody{ReadCloser: b.ReadCloser, left: n}
	}
	return b
}

// exactBody is a body whose length the answer did not say. It gives its last bytes only
// once it has seen that they are.
type exactBody struct {
	io.ReadCloser

	left int64
}

// Read reads the body.
func (b *exactBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	if b.left -= int64(n); b.left > 0 && errors.Is(err, io.EOF) {
		return n, io.ErrUnexpectedEOF // only who asked knows that there is more
	}
	if b.left > 0 || err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	var beyond [1]byte
	for m := 0; err == nil; {
		if m, err = b.ReadCloser.Read(beyond[:]); m > 0 {
			err = &protocolError{"the server sent more bytes than the object has"}
		}
	}
	if errors.Is(err, io.EOF) {
		return n, nil
	}
	b.left += int64(n)
	return 0, err
}

// source is where objects come from. Errors are a *ExitError if no retry can
// help, errChanged, a *throttled, or anything else for a passing trouble.
type source interface {
	// page returns objects whose keys start with prefix, in key order, from where
	// token says, and the token for those that follow, if there are any.
	page(ctx context.Context, prefix, token string) (objects []object, next string, err error)
	// head returns the object as it is now, with its checksum.
	head(ctx context.Context, key string) (object, error)
	// firstPart returns the size of the first piece of an upload in pieces.
	firstPart(ctx context.Context, key string) (int64, error)
	// get opens the bytes of s. The answer is checked to be exactly these bytes
	// of the version that o names.
	get(ctx context.Context, o object, s span) (body, error)
	// open is get over a line, which is cheaper for many requests.
	open(ctx context.Context, l *line, o object, s span) (body, error)
	// secure reports whether lines are encrypted.
	secure(ctx context.Context) bool
}

// each calls take for the objects of a source by page, until it returns false: the
// object whose key is prefix, and those below it as a folder, or all whose keys start
// with it if siblings count. S3 sorts keys, so `a-b/c` comes before `a/c`: keys of
// siblings are skipped, and if there are more than a page of them, the listing starts
// again below the slash.
func each(ctx context.Context, src source, prefix string, siblings bool, take func(object) bool) error {
	dir := prefix
	if !siblings && prefix != "" && !strings.HasSuffix(prefix, "/") {
		dir = prefix + "/"
	}
	ask, token, found := prefix, "", false
	for before := []object(nil); ; {
		objects, next, err := src.page(ctx, ask, token)
		if err != nil {
			return err
		}
		if token != "" && (next == token || beginsAlike(objects, before)) {
			return errNoEnd // the same again and again
		}
		before = objects
		for _, o := range objects {
			if o.key != prefix && !strings.HasPrefix(o.key, dir) {
				continue
			}
			if found = true; !take(o) {
				return nil
			}
		}
		if next == "" {
			return nil
		}
		if token = next; !found && ask != dir {
			ask, token = dir, ""
		}
	}
}

// beginsAlike reports whether two pages begin with the same key.
func beginsAlike(a, b []object) bool { return len(a) > 0 && len(b) > 0 && a[0].key == b[0].key }

// errNoEnd says that a listing does not come on.
var errNoEnd = &ExitError{
	Code: ExitIntegrity, Reason: "BadListing", Cause: "the server says that there is more to list, but does not list it",
	Advice: "The endpoint, or a proxy before it, does not list objects as S3 does.",
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
