// SPDX-License-Identifier: Apache-2.0

// Package preloader copies a model from S3 into a directory, as fast as the
// machine allows, in bounded memory, and never shows a file that it could not
// vouch for.
//
// It is a drop-in for KServe's storage-initializer: the same arguments, the
// same environment, the same layout on disk. It knows nothing of Kubernetes.
//
// The contract:
//
//   - A final file name holds only bytes that passed the configured check.
//     Bytes travel through a hidden working directory and are renamed.
//   - All bytes of one file come from one version of the object: every request
//     carries If-Match, and a changed object starts over once.
//   - Writes stay under the destination (os.Root), whatever the keys say.
//   - A run that was killed goes on where it stopped; see [Marker] and journal.go.
//   - Memory does not grow with the model's bytes: one buffer a connection, no more.
//     Of each file it keeps some 60 bytes beside its path; see catalog.go.
//   - Every failure is a [ExitError]: an exit code, a cause and an advice.
//
// The files, in the order in which a pull passes through them: command.go
// (arguments), options.go (environment), uri.go, s3config.go and s3.go (the
// store that is read), tree.go, pattern.go and select.go (which objects become which
// files), catalog.go and arena.go (what is kept in mind of each), lint.go (whether they can be what they seem), plan.go (byte ranges), store.go and journal.go (the directory that is
// written), fetch.go, stream.go, overtake.go and throttle.go (moving the bytes), verify.go and package crc
// (trusting them), meter.go, progress.go, metrics.go and report.go (saying so). reuse.go and
// package nodecache spare the network what the node has, warm.go the disk. jitpull.go brings
// compiled kernels and jitpublish.go, with upload.go and package jitcache, makes them; what both
// know of the store is in jitcache.go. plancommand.go and forecast.go say all this beforehand.
package preloader
