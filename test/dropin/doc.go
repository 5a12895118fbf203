// SPDX-License-Identifier: Apache-2.0

// Package dropin proves that the preloader can take the place of KServe's
// storage-initializer: its test runs KServe's own Python program and the
// preloader with the same arguments and environment on the same buckets of a
// real S3 server, and compares what they leave on disk.
package dropin
