// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what S3 calls Content-MD5; it guards against accidents
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// uploader writes objects into one bucket. Every request carries the MD5 of its bytes,
// which all stores check; bytes that they cannot check are not sent.
type uploader struct {
	src    *s3Source
	repeat func(ctx context.Context, what string, call func() error) error
}

const (
	// uploadPart is how much one request carries, at least; two such are held in memory.
	uploadPart = 8 * mebibyte
	// mostParts is one less than what a store takes of an object.
	mostParts = 9999
	// uploadTimeout is what a request may take for its bytes before it is made again.
	uploadTimeout = 2 * time.Minute
)

// reasonNoConditions says that the store takes no conditional requests.
const reasonNoConditions = "NoConditions"

// condition says what must be true for an object to be written.
type condition struct {
	// absent: there is none of its name.
	absent bool
	// etag: it is this version; empty for any.
	etag string
}

// put writes a small object in one request. If the condition is not met, the error is
// errChanged.
func (u *uploader) put(ctx context.Context, key string, data []byte, contentType string, when condition) error {
	in := &s3.PutObjectInput{
		Bucket: &u.src.bucket, Key: &key, ContentType: &contentType, ContentMD5: contentMD5(data),
		ContentLength: aws.Int64(int64(len(data))),
	}
	switch {
	case when.absent:
		in.IfNoneMatch = aws.String("*")
	case when.etag != "":
		in.IfMatch = aws.String(`"` + when.etag + `"`)
	}
	return u.repeat(ctx, "writing "+u.uri(key), func() error {
		ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
		defer cancel()
		return u.explain(u.src.insisting(ctx, func(ctx context.Context) error {
			in.Body = bytes.NewReader(data)
			_, err := u.src.client.PutObject(ctx, in, u.src.atRegion, plainly)
			return err
		}), key)
	})
}

// plainly keeps the SDK from adding checksums in a form that older stores do not know.
func plainly(o *s3.Options) {
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

func contentMD5(data []byte) *string {
	sum := md5.Sum(data) //nolint:gosec // see above
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

func (u *uploader) uri(key string) string { return "s3://" + u.src.bucket + "/" + key }

// explain words an error of writing.
func (u *uploader) explain(err error, key string) error {
	if err == nil {
		return nil
	}
	if answer, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		switch answer.HTTPStatusCode() {
		case http.StatusNotImplemented:
			return &ExitError{
				Code:   ExitConfig,
				Reason: reasonNoConditions,
				Cause:  "the store does not know what " + u.uri(key) + " was asked with",
				Err:    brief(err, http.StatusNotImplemented, ""),
			}
		case http.StatusConflict: // another write is under way
			return fmt.Errorf("writing %s: %w", u.uri(key), brief(err, http.StatusConflict, ""))
		}
	}
	err = u.src.explain(err, key)
	if f, ok := errors.AsType[*ExitError](err); ok && f.Code == ExitDenied {
		f.Advice = "Check the credentials, and that they allow s3:PutObject here."
	}
	return err
}

// largeObject is an object on its way, in parts. What is written to it goes out while
// more is being written. It is an io.Writer; nothing is there before finish.
type largeObject struct {
	u    *uploader
	ctx  context.Context //nolint:containedctx // lives as long as one upload
	key  string
	id   string
	part int
	fill []byte
	next []byte
	n    int32
	done []types.CompletedPart
	// sent carries the outcome of the part that is under way.
	sent  chan error
	etag  string
	under bool
}

// begin starts an object that will have this size.
func (u *uploader) begin(ctx context.Context, key string, size int64) (*largeObject, error) {
	l := &largeObject{u: u, ctx: ctx, key: key, part: int(max(uploadPart, size/mostParts+1)), sent: make(chan error, 1)}
	l.fill, l.next = make([]byte, 0, l.part), make([]byte, 0, l.part)
	err := u.repeat(ctx, "beginning to write "+u.uri(key), func() error {
		err := u.src.bounded(ctx, func(ctx context.Context) error {
			out, err := u.src.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
				Bucket: &u.src.bucket, Key: &key, ContentType: aws.String("application/zstd"),
			}, u.src.atRegion, plainly)
			if err == nil {
				l.id = aws.ToString(out.UploadId)
			}
			return err
		})
		return u.explain(err, key)
	})
	return l, err
}

// Write takes bytes and waits while a part before is under way.
func (l *largeObject) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), l.part-len(l.fill))
		l.fill = append(l.fill, p[:n]...)
		if p = p[n:]; len(l.fill) == l.part {
			if err := l.send(); err != nil {
				return 0, err
			}
		}
	}
	return total, nil
}

// send hands the filled buffer over, after the one before has gone.
func (l *largeObject) send() error {
	if err := l.settle(); err != nil {
		return err
	}
	l.n++
	number, data := l.n, l.fill
	l.fill, l.next = l.next[:0], l.fill
	l.under = true
	go func() { l.sent <- l.upload(number, data) }()
	return nil
}

// settle waits for the part that is under way.
func (l *largeObject) settle() error {
	if !l.under {
		return nil
	}
	l.under = false
	if err := <-l.sent; err != nil {
		return err
	}
	l.done = append(l.done, types.CompletedPart{PartNumber: aws.Int32(l.n), ETag: aws.String(l.etag)})
	return nil
}

func (l *largeObject) upload(number int32, data []byte) error {
	return l.u.repeat(l.ctx, "writing a part of "+l.u.uri(l.key), func() error {
		ctx, cancel := context.WithTimeout(l.ctx, uploadTimeout)
		defer cancel()
		var out *s3.UploadPartOutput
		err := l.u.src.insisting(ctx, func(ctx context.Context) (err error) {
			out, err = l.u.src.client.UploadPart(ctx, &s3.UploadPartInput{
				Bucket: &l.u.src.bucket, Key: &l.key, UploadId: &l.id, PartNumber: &number,
				Body: bytes.NewReader(data), ContentMD5: contentMD5(data), ContentLength: aws.Int64(int64(len(data))),
			}, l.u.src.atRegion, plainly)
			return err
		})
		if err != nil {
			return l.u.explain(err, l.key)
		}
		l.etag = aws.ToString(out.ETag)
		return nil
	})
}

// finish writes what is left and makes the object.
func (l *largeObject) finish() error {
	if len(l.fill) > 0 {
		if err := l.send(); err != nil {
			return err
		}
	}
	if err := l.settle(); err != nil {
		return err
	}
	return l.u.repeat(l.ctx, "completing "+l.u.uri(l.key), func() error {
		return l.u.explain(l.u.src.insisting(l.ctx, func(ctx context.Context) error {
			_, err := l.u.src.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
				Bucket: &l.u.src.bucket, Key: &l.key, UploadId: &l.id,
				MultipartUpload: &types.CompletedMultipartUpload{Parts: l.done},
			}, l.u.src.atRegion, plainly)
			return err
		}), l.key)
	})
}

// abort drops the parts that are there. It outlives the run's context a little, so that
// a store does not keep, and charge for, what nobody sees.
func (l *largeObject) abort() error {
	_ = l.settle()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), 5*time.Second)
	defer cancel()
	_, err := l.u.src.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
		Bucket: &l.u.src.bucket, Key: &l.key, UploadId: &l.id,
	}, l.u.src.atRegion)
	return err
}

// remove deletes an object.
func (u *uploader) remove(ctx context.Context, key string) error {
	return u.repeat(ctx, "removing "+u.uri(key), func() error {
		return u.explain(u.src.insisting(ctx, func(ctx context.Context) error {
			_, err := u.src.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &u.src.bucket, Key: &key}, u.src.atRegion)
			return err
		}), key)
	})
}
