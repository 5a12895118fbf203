// SPDX-License-Identifier: Apache-2.0

package jitcache

import (
	"io/fs"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// driverVersion finds the version in what the driver says about itself, such as
// "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024".
var driverVersion = regexp.MustCompile(`\s(\d{3,4})\.\d+(\.\d+)*\s`)

// Machine finds out, below the root of a file system, which GPU and driver this machine
// has. NVIDIA's driver tells both in /proc to every container, so neither a GPU nor a
// library is needed. Parts that cannot be told are absent.
func Machine(root fs.FS) Key {
	k := Key{KeyArch: runtime.GOARCH}
	const driver = "proc/driver/nvidia"
	if raw, err := fs.ReadFile(root, driver+"/version"); err == nil {
		line, _, _ := strings.Cut(string(raw), "\n")
		if m := driverVersion.FindStringSubmatch(line + " "); m != nil {
			k[KeyDriver] = m[1]
		}
	}
	gpus, _ := fs.Glob(root, driver+"/gpus/*/information")
	var models []string
	for _, g := range gpus {
		raw, err := fs.ReadFile(root, g)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "Model" {
				models = append(models, strings.ReplaceAll(strings.TrimSpace(value), ",", " "))
			}
		}
	}
	slices.Sort(models)
	if models = slices.Compact(models); len(models) > 0 {
		k[KeyGPU] = strings.Join(models, " + ")
	}
	if k.check() != nil { // a driver that says odd things about itself
		delete(k, KeyGPU)
	}
	return k
}
