// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"os"
	"strings"
)

// Pair is one thing to fetch and the directory to put it into.
type Pair struct {
	// Source is an s3:// URI, a local path, or a file:// URI.
	Source string
	// Dest is a directory; it is made if it does not exist.
	Dest string
}

type sourceKind int

const (
	sourceS3 sourceKind = iota
	// sourceLocal is linked, not copied.
	sourceLocal
	// sourceMounted means that something else fills the directory.
	sourceMounted
)

// location is a parsed source.
type location struct {
	kind   sourceKind
	bucket string
	// path is the key or prefix within the bucket, without a leading slash, or
	// the local path.
	path string
}

// parseSource tells what a source is, by KServe's rules and in their order: a
// path that exists is local whatever it looks like.
func parseSource(uri string) (location, error) {
	if after, ok := strings.CutPrefix(uri, "file://"); ok {
		return location{kind: sourceLocal, path: after}, nil
	}
	_, statErr := os.Stat(uri)
	switch {
	case statErr == nil, strings.HasPrefix(uri, "/mnt/pvc"):
		return location{kind: sourceLocal, path: uri}, nil
	case strings.HasPrefix(uri, "/mnt/models"):
		return location{kind: sourceMounted}, nil
	}
	rest, isS3 := strings.CutPrefix(uri, "s3://")
	scheme, _, hasScheme := strings.Cut(uri, "://")
	switch {
	case strings.HasPrefix(uri, "/"):
		return location{}, noLocalPath(uri, statErr)
	case !hasScheme:
		return location{}, configFailure(
			"Write it as s3://bucket/path.",
			"source %q is neither a URI nor a path that exists",
			uri,
		)
	case !isS3:
		return location{}, configFailure(
			"Leave this service to KServe's default storage initializer; the preloader takes s3:// and local paths.",
			"source %q has a scheme that the preloader does not serve (%s)", uri, scheme)
	}
	bucket, path, _ := strings.Cut(rest, "/")
	if bucket == "" {
		return location{}, configFailure("Write it as s3://bucket/path.", "source %q names no bucket", uri)
	}
	return location{kind: sourceS3, bucket: bucket, path: strings.TrimLeft(path, "/")}, nil
}
