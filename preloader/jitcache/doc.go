// SPDX-License-Identifier: Apache-2.0

// Package jitcache packs the trees in which inference engines keep what they compiled,
// and unpacks them where they will be used again.
//
// What an engine compiles depends on the GPU, the driver, the engine and the model, so
// each archive goes with a [Key] and is only ever unpacked where the key is the same.
//
// The contract:
//
//   - Packing the same files twice gives the same bytes: names are sorted, owners are
//     left out, and nothing depends on the clock. Times of files are kept to the
//     nanosecond, because build tools compare them.
//   - Only regular files and folders are packed and unpacked. Locks and half-written
//     files are left out: an engine that finds a lock waits for who is long gone.
//   - Unpacking stays beneath an os.Root, into a folder that did not exist, and never
//     writes more files or bytes than the [Manifest] announced.
//   - Nothing here talks to a store; package preloader does.
//
// The files: key.go (what a cache is good for), machine.go (what this machine is),
// trees.go (where engines keep what), pack.go, unpack.go and manifest.go.
package jitcache
