// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"path"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// mostSteps bounds how far up a folder is sought that is there.
const mostSteps = 8

// nothingFound words the absence of a model, and names what is there in its place.
func (p *pull) nothingFound(ctx context.Context, listed int) error {
	f := &ExitError{
		Code: ExitNotFound, Reason: "NoModel", Cause: "no model found in " + p.pair.Source,
		Advice: "Check the path in the storage URI: it must be an object's key, or a folder with objects below it.",
	}
	if listed > 0 {
		f.Cause = "no file is left of " + p.pair.Source + " after the filters"
		f.Advice = "Check STORAGE_ALLOW_PATTERNS and STORAGE_IGNORE_PATTERNS."
		return f
	}
	at, parent := strings.TrimSuffix(p.at.path, "/"), ""
	var beside []string
	for range mostSteps { // up to the folder that is there
		parent = strings.TrimPrefix(path.Dir("/"+at), "/")
		if parent != "" {
			parent += "/"
		}
		if beside = p.beside(ctx, parent); len(beside) > 0 || parent == "" {
			break
		}
		at = strings.TrimSuffix(parent, "/")
	}
	if len(beside) == 0 {
		return f
	}
	where := "s3://" + p.at.bucket + "/" + parent
	if meant := nearest(path.Base(at), beside); meant != "" {
		f.Advice = "Did you mean " + where + meant + "? " + f.Advice
		return f
	}
	text := strings.Join(beside[:min(len(beside), mostNamed)], ", ")
	if len(beside) > mostNamed {
		text += " and more"
	}
	f.Advice = "What is in " + where + ": " + text + ". " + f.Advice
	return f
}

// beside returns what is directly below a folder of the bucket, as far as one answer tells
// it. Trouble finds nothing: it is only for advice.
func (p *pull) beside(ctx context.Context, folder string) []string {
	src, ok := unhurried(p.src).(*s3Source)
	if !ok {
		return nil
	}
	var out *s3.ListObjectsV2Output
	err := src.bounded(ctx, func(ctx context.Context) (err error) {
		in := &s3.ListObjectsV2Input{Bucket: &src.bucket, Prefix: &folder, Delimiter: aws.String("/")}
		out, err = src.client.ListObjectsV2(ctx, in, src.atRegion)
		return err
	})
	if err != nil {
		return nil
	}
	var names []string
	add := func(key string) {
		if name, _, _ := strings.Cut(strings.TrimPrefix(key, folder), "/"); name != "" {
			names = append(names, name)
		}
	}
	for _, common := range out.CommonPrefixes {
		add(aws.ToString(common.Prefix))
	}
	for _, o := range out.Contents {
		add(aws.ToString(o.Key))
	}
	slices.Sort(names)
	return slices.Compact(names)
}
