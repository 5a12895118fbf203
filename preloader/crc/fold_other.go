// SPDX-License-Identifier: Apache-2.0

//go:build !amd64

package crc

import "github.com/minio/crc64nvme"

// updateNVME continues a CRC64NVME.
func updateNVME(crc uint64, p []byte) uint64 { return crc64nvme.Update(crc, p) }
