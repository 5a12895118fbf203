// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"serverless.xyz/outrigger/samples/predictor/model"
)

// Bucket is where models are uploaded.
const Bucket = "models"

// S3Client returns a client of the testbed's S3 server.
func (c *Cluster) S3Client() *s3.Client {
	endpoint, access, secret := c.S3()
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint),
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider(access, secret, ""),
		UsePathStyle: true,
	})
}

// UploadModel uploads a version of the sample model, v1 or v2, under a prefix. It returns the number of bytes.
func (c *Cluster) UploadModel(ctx context.Context, version, prefix string) (int64, error) {
	client := c.S3Client()
	_, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(Bucket)})
	var owned *types.BucketAlreadyOwnedByYou
	var exists *types.BucketAlreadyExists
	if err != nil && !errors.As(err, &owned) && !errors.As(err, &exists) {
		return 0, fmt.Errorf("making bucket %s: %w", Bucket, err)
	}
	var uploaded int64
	err = fs.WalkDir(model.FS, version, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(model.FS, path)
		if err != nil {
			return err
		}
		_, err = client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: aws.String(Bucket), Key: aws.String(prefix + path[len(version):]), Body: bytes.NewReader(data),
		})
		if err != nil {
			return fmt.Errorf("uploading %s: %w", path, err)
		}
		uploaded += int64(len(data))
		return nil
	})
	return uploaded, err
}
