// SPDX-License-Identifier: Apache-2.0

// Command transfermanager copies what lies under a prefix of a bucket into a folder with the transfer manager of the
// AWS SDK, which has no program of its own: transfermanager BUCKET PREFIX FOLDER. Its defaults stand but for one: it
// asks for ranges and not for the parts of an upload, because an object of one part would come over one connection.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

func main() {
	if err := download(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func download(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("usage: transfermanager BUCKET PREFIX FOLDER")
	}
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return err
	}
	store := s3.NewFromConfig(cfg, func(o *s3.Options) { o.UsePathStyle = true })
	client := transfermanager.New(store, func(o *transfermanager.Options) { o.GetObjectType = types.GetObjectRanges })
	out, err := client.DownloadDirectory(ctx, &transfermanager.DownloadDirectoryInput{
		Bucket: &args[0], KeyPrefix: &args[1], Destination: &args[2],
	})
	if err != nil {
		return err
	}
	fmt.Printf("%d objects\n", out.ObjectsDownloaded)
	return nil
}
