// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// s3Source reads one bucket. The SDK signs and addresses; the bytes pass
// through none of its readers.
type s3Source struct {
	client *s3.Client
	bucket string
	// answerBy bounds a request whose answer is read at once; 0 is no bound.
	answerBy time.Duration
	// owned means that requests name the account that must own the bucket.
	owned bool
	// region holds a region that the store named in an answer, once it did.
	region atomic.Pointer[string]
	// keys sign requests; nil where they are not signed.
	keys *keys

	// wire is for reading objects; it is nil where only the SDK can, and belongs
	// to the region that it was sampled at.
	wiring    sync.Mutex
	wire      *wire
	sampled   bool
	sampledAt *string
}

func newS3Source(client *s3.Client, bucket string, opts Options) *s3Source {
	s := &s3Source{
		client: client, bucket: bucket, answerBy: opts.ReadTimeout + opts.Stall, owned: opts.BucketOwner != "",
	}
	s.keys, _ = client.Options().Credentials.(*keys)
	return s
}

// bounded makes a request whose answer is read at once. The client bounds the wait for
// its head only; one that stalls after it is ended here.
func (s *s3Source) bounded(ctx context.Context, ask func(context.Context) error) error {
	if s.answerBy <= 0 {
		return s.insisting(ctx, ask)
	}
	asking, cancel := context.WithTimeoutCause(ctx, s.answerBy, errStalled)
	defer cancel()
	err := s.insisting(asking, ask)
	if err != nil && ctx.Err() == nil {
		return stallOr(asking, err)
	}
	return err
}

// insisting makes a request once more if the store named another region for it, or
// refused credentials that have ended and could be renewed.
func (s *s3Source) insisting(ctx context.Context, ask func(context.Context) error) error {
	region := s.region.Load()
	var used aws.Credentials
	if s.keys != nil {
		var err error
		if used, err = s.keys.Retrieve(ctx); err != nil {
			return err
		}
	}
	err := ask(ctx)
	if err == nil {
		return nil
	}
	if s.learnRegion(err, region) {
		return ask(ctx)
	}
	renewed, trouble := s.keys.renew(ctx, err, used)
	if trouble != nil {
		return trouble
	}
	if renewed {
		return ask(ctx)
	}
	return err
}

// listing1 starts a token that continues a listing of S3's first version, after the key
// behind it.
const listing1 = "after "

func (s *s3Source) page(ctx context.Context, prefix, token string) ([]object, string, error) {
	var out *s3.ListObjectsV2Output
	err := s.bounded(ctx, func(ctx context.Context) (err error) {
		// Encoded, because XML does not hold every character that a key may have.
		in := &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &prefix, EncodingType: types.EncodingTypeUrl}
		if after, first := strings.CutPrefix(token, listing1); first {
			out, err = s.page1(ctx, in, after)
			return err
		}
		in.ContinuationToken = optional(token)
		out, err = s.client.ListObjectsV2(ctx, in, s.atRegion)
		return err
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing s3://%s/%s: %w", s.bucket, prefix, s.explain(err, prefix))
	}
	objects := make([]object, 0, len(out.Contents))
	for _, o := range out.Contents {
		found, err := listedObject(o, out.EncodingType)
		if err != nil {
			return nil, "", fmt.Errorf("listing s3://%s/%s: %w", s.bucket, prefix, err)
		}
		objects = append(objects, found)
	}
	next := ""
	switch {
	case !aws.ToBool(out.IsTruncated):
	case aws.ToString(out.NextContinuationToken) != "":
		next = *out.NextContinuationToken
	case len(objects) > 0: // a store that knows only the first version of listings
		next = listing1 + objects[len(objects)-1].key
	default:
		return nil, "", fmt.Errorf("listing s3://%s/%s: %w", s.bucket, prefix, errNoEnd)
	}
	return objects, next, nil
}

// page1 is a page of a listing of S3's first version.
func (s *s3Source) page1(ctx context.Context, in *s3.ListObjectsV2Input, after string) (*s3.ListObjectsV2Output, error) {
	out, err := s.client.ListObjects(ctx, &s3.ListObjectsInput{
		Bucket: in.Bucket, Prefix: in.Prefix, EncodingType: in.EncodingType, Marker: &after,
	}, s.atRegion)
	if err != nil {
		return nil, err
	}
	return &s3.ListObjectsV2Output{Contents: out.Contents, IsTruncated: out.IsTruncated, EncodingType: out.EncodingType}, nil
}

func listedObject(o types.Object, encoding types.EncodingType) (object, error) {
	key := aws.ToString(o.Key)
	if encoding == types.EncodingTypeUrl {
		plain, err := url.QueryUnescape(key)
		if err != nil {
			return object{}, &protocolError{fmt.Sprintf("the server lists key %q, which it says is encoded: %v", key, err)}
		}
		key = plain
	}
	if aws.ToInt64(o.Size) < 0 {
		return object{}, &protocolError{fmt.Sprintf("the server lists key %q with %d bytes", key, *o.Size)}
	}
	return object{
		key: key, size: aws.ToInt64(o.Size),
		etag: trimETag(aws.ToString(o.ETag)), modified: aws.ToTime(o.LastModified).Unix(),
	}, nil
}

func (s *s3Source) head(ctx context.Context, key string) (object, error) {
	var out *s3.HeadObjectOutput
	err := s.bounded(ctx, func(ctx context.Context) (err error) {
		out, err = s.client.HeadObject(ctx, &s3.HeadObjectInput{
			Bucket: &s.bucket, Key: &key, ChecksumMode: types.ChecksumModeEnabled,
		}, s.atRegion)
		return err
	})
	if err != nil {
		return object{}, fmt.Errorf("reading the head of s3://%s/%s: %w", s.bucket, key, s.explain(err, key))
	}
	if aws.ToInt64(out.ContentLength) < 0 || out.ContentLength == nil { // which is not to say that it is empty
		return object{}, fmt.Errorf("reading the head of s3://%s/%s: %w", s.bucket, key,
			&protocolError{"the server does not say how long the object is"})
	}
	return object{
		key: key, size: aws.ToInt64(out.ContentLength), etag: trimETag(aws.ToString(out.ETag)),
		modified: aws.ToTime(out.LastModified).Unix(),
		answer: &answer{
			encrypted: keyEncrypted(out.ServerSideEncryption, out.SSECustomerAlgorithm),
			sum: pickChecksum(out.ChecksumType, map[string]*string{
				"CRC64NVME": out.ChecksumCRC64NVME, "CRC32C": out.ChecksumCRC32C, "CRC32": out.ChecksumCRC32,
				"SHA256": out.ChecksumSHA256, "SHA1": out.ChecksumSHA1, "SHA512": out.ChecksumSHA512, "MD5": out.ChecksumMD5,
			}),
		},
	}, nil
}

func (s *s3Source) firstPart(ctx context.Context, key string) (int64, error) {
	var out *s3.HeadObjectOutput
	err := s.bounded(ctx, func(ctx context.Context) (err error) {
		in := &s3.HeadObjectInput{Bucket: &s.bucket, Key: &key, PartNumber: aws.Int32(1)}
		out, err = s.client.HeadObject(ctx, in, s.atRegion)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("reading the first part's head of s3://%s/%s: %w", s.bucket, key, s.explain(err, key))
	}
	return aws.ToInt64(out.ContentLength), nil
}

// get asks for the bytes of one span, or for the whole object without a Range,
// which lets the answer carry the object's checksum.
func (s *s3Source) get(ctx context.Context, o object, part span) (body, error) {
	in := &s3.GetObjectInput{Bucket: &s.bucket, Key: &o.key, IfMatch: o.ifMatch()}
	whole := part.off == 0 && part.n == o.size
	if !whole {
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", part.off, part.end()-1))
	}
	var out *s3.GetObjectOutput
	err := s.insisting(ctx, func(ctx context.Context) (err error) {
		out, err = s.client.GetObject(ctx, in, s.atRegion, func(opt *s3.Options) {
			if whole {
				// The header alone, not the input field: that would wrap the body
				// in the SDK's own slow check.
				opt.APIOptions = append(opt.APIOptions, checksumHeader)
			}
		})
		return err
	})
	if err != nil {
		return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, s.explain(err, o.key))
	}
	b := body{ReadCloser: out.Body, object: object{
		key: o.key, etag: trimETag(aws.ToString(out.ETag)), modified: aws.ToTime(out.LastModified).Unix(),
		answer: &answer{
			encrypted: keyEncrypted(out.ServerSideEncryption, out.SSECustomerAlgorithm),
			sum: pickChecksum(out.ChecksumType, map[string]*string{
				"CRC64NVME": out.ChecksumCRC64NVME, "CRC32C": out.ChecksumCRC32C, "CRC32": out.ChecksumCRC32,
				"SHA256": out.ChecksumSHA256, "SHA1": out.ChecksumSHA1, "SHA512": out.ChecksumSHA512, "MD5": out.ChecksumMD5,
			}),
		},
	}}
	if b.object.version() != o.version() {
		err = errChanged
	} else {
		err = checkRange(o, part, aws.ToString(out.ContentRange), out.ContentLength)
	}
	if err != nil {
		_ = out.Body.Close()
		return body{}, fmt.Errorf("reading s3://%s/%s: %w", s.bucket, o.key, err)
	}
	return b.exactly(part.n, out.ContentLength), nil
}

func checksumHeader(stack *middleware.Stack) error {
	return smithyhttp.AddHeaderValue("x-amz-checksum-mode", "ENABLED")(stack)
}

// checkRange checks that an answer holds exactly the span that was asked for.
func checkRange(o object, part span, contentRange string, length *int64) error {
	if contentRange == "" {
		// No range in the answer means the whole object, asked for or not. One whose length
		// is not said is measured by an exactBody.
		whole := part.off == 0 && part.n == o.size
		if !whole || length != nil && *length != part.n {
			return &protocolError{fmt.Sprintf("the server answered %d bytes for bytes %d to %d of %d",
				aws.ToInt64(length), part.off, part.end()-1, o.size)}
		}
		return nil
	}
	answered, total, _ := strings.Cut(contentRange, "/")
	if size, err := strconv.ParseInt(total, 10, 64); err == nil && size != o.size {
		return errChanged
	}
	want := fmt.Sprintf("bytes %d-%d", part.off, part.end()-1)
	if answered != want {
		return &protocolError{fmt.Sprintf("the server answered range %q, want %q", contentRange, want)}
	}
	if length != nil && *length != part.n {
		return &protocolError{fmt.Sprintf("the server answered %d bytes for a range of %d", *length, part.n)}
	}
	return nil
}

// keyEncrypted reports whether the object's ETag cannot be an MD5.
func keyEncrypted(sse types.ServerSideEncryption, customer *string) bool {
	return customer != nil || sse == types.ServerSideEncryptionAwsKms || sse == types.ServerSideEncryptionAwsKmsDsse
}

// checksumNames are what can be computed here, best first.
var checksumNames = []string{"CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA512", "SHA1", "MD5"}

// pickChecksum returns the strongest checksum that an answer carries: one that
// combines from pieces first, then one that needs a pass of its own.
func pickChecksum(kind types.ChecksumType, values map[string]*string) checksum {
	for _, name := range checksumNames {
		v := aws.ToString(values[name])
		if v == "" {
			continue
		}
		composite := kind == types.ChecksumTypeComposite || strings.Contains(v, "-")
		return checksum{algorithm: name, value: v, composite: composite}
	}
	return checksum{}
}

// atRegion signs for the region that the store named, if it named one.
func (s *s3Source) atRegion(o *s3.Options) {
	if r := s.region.Load(); r != nil {
		o.Region = *r
	}
}

// learnRegion reports whether err is the store's hint at another region than the
// request was signed for, which is nil for the client's own.
func (s *s3Source) learnRegion(err error, used *string) bool {
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) || answer.Response == nil {
		return false
	}
	region := answer.Response.Header.Get("X-Amz-Bucket-Region")
	was := s.client.Options().Region
	if used != nil {
		was = *used
	}
	if region == "" || region == was {
		return false
	}
	s.region.CompareAndSwap(used, &region) // whoever learned it meanwhile learned the same
	return true
}
