// SPDX-License-Identifier: Apache-2.0

// Command images builds the image archives of the project into the folder that its argument names, and prints their sizes.
package main

import (
	"context"
	"fmt"
	"os"

	"serverless.xyz/outrigger/test/cluster"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: images FOLDER")
		os.Exit(2)
	}
	archives, err := cluster.BuildImages(context.Background(), os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, archive := range archives {
		info, err := os.Stat(archive)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Fprintf(os.Stdout, "%s  %.1f MB\n", archive, float64(info.Size())/1e6)
	}
}
