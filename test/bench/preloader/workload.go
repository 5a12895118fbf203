// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

const mebibyte = 1 << 20

// workload is a model of files that are all alike.
type workload struct {
	name  string
	count int
	size  int64
}

// workloads have the shapes that the AWS CRT's own benchmarks use, scaled to a small machine.
var workloads = []workload{
	{"one-large", 1, 1024 * mebibyte},
	{"shards", 8, 128 * mebibyte},
	{"small", 400, mebibyte / 4},
	{"many-small", 10_000, mebibyte / 4},
}

// tiny are workloads for trying the benchmark out.
var tiny = []workload{
	{"one-large", 1, 96 * mebibyte},
	{"shards", 4, 24 * mebibyte},
	{"small", 40, mebibyte / 4},
	{"many-small", 1_200, 4096},
}

func (w workload) bytes() int64 { return int64(w.count) * w.size }

func (w workload) String() string {
	size := fmt.Sprintf("%d KiB", w.size>>10)
	if w.size >= mebibyte {
		size = fmt.Sprintf("%d MiB", w.size/mebibyte)
	}
	return fmt.Sprintf("%d x %s", w.count, size)
}

// file is one object of a workload: its key in the bucket is the workload's name, a slash, and the file's name.
type file struct {
	Key  string
	Size int64
}

func (f file) name() string { return path.Base(f.Key) }

func (w workload) files() []file {
	files := make([]file, w.count)
	for i := range files {
		files[i] = file{Key: fmt.Sprintf("%s/model-%05d.bin", w.name, i), Size: w.size}
	}
	return files
}

// cell is one row of circumstances: every client does the same there.
type cell struct {
	workload string
	// tls means HTTPS.
	tls bool
	// memory means that the destination's files live in memory, otherwise on disk.
	memory bool
	// limited means 1 CPU and 1 GiB of memory, KServe's default for its initializer.
	limited bool
	// far means a store that takes 20 ms to answer and gives each connection 90 MB/s, as S3 does.
	far bool
}

// cells are what is measured if nothing else is asked for.
var cells = []cell{
	{workload: "one-large"},
	{workload: "one-large", memory: true},
	{workload: "one-large", tls: true},
	{workload: "one-large", tls: true, memory: true},
	{workload: "shards"},
	{workload: "shards", memory: true},
	{workload: "small"},
	{workload: "small", memory: true},
	{workload: "small", tls: true},
	{workload: "many-small"},
	{workload: "shards", limited: true},
	{workload: "small", limited: true},
	{workload: "one-large", far: true},
	{workload: "small", far: true},
}

// id names a cell on the command line and in the report.
func (c cell) id() string {
	parts := []string{c.workload, "plain", "disk"}
	if c.tls {
		parts[1] = "tls"
	}
	if c.memory {
		parts[2] = "memory"
	}
	if c.limited {
		parts = append(parts, "1cpu-1gib")
	}
	if c.far {
		parts = append(parts, "far")
	}
	return strings.Join(parts, ".")
}

func workloadNamed(all []workload, name string) workload {
	return all[slices.IndexFunc(all, func(w workload) bool { return w.name == name })]
}
