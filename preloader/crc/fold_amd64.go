// SPDX-License-Identifier: Apache-2.0

package crc

import (
	"github.com/klauspost/cpuid/v2"
	"github.com/minio/crc64nvme"
)

// canFold is for processors that multiply without carries 32 bytes at a time but
// lack AVX-512, such as AMD's third EPYC generation: crc64nvme takes 16 bytes at
// a time there, and needs twice as long.
var canFold = cpuid.CPU.Supports(cpuid.AVX2, cpuid.VPCLMULQDQ) && !cpuid.CPU.Supports(cpuid.AVX512F)

// foldNVME reduces p, whose length is a multiple of 128 and not 0, to 128 bytes
// with the same remainder, after mixing start into its first 8 bytes.
//
//go:noescape
func foldNVME(state *[128]byte, start uint64, p []byte)

// foldLeast is the length from which folding pays.
const foldLeast = 1024

// updateNVME continues a CRC64NVME.
func updateNVME(crc uint64, p []byte) uint64 {
	if !canFold || len(p) < foldLeast {
		return crc64nvme.Update(crc, p)
	}
	whole := len(p) &^ 127
	var state [128]byte
	foldNVME(&state, ^crc, p[:whole])
	// The value that came before is in the state already, so that a zero register begins.
	crc = crc64nvme.Update(^uint64(0), state[:])
	return crc64nvme.Update(crc, p[whole:])
}
