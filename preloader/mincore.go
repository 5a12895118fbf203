// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mincore tells for each page of a mapping whether it is in memory. The system
// call has no wrapper in the packages that this program uses.
func mincore(mapped, present []byte) error {
	//nolint:gosec // the call takes addresses
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(unsafe.SliceData(mapped))),
		uintptr(len(mapped)),
		uintptr(unsafe.Pointer(unsafe.SliceData(present))))
	if errno != 0 {
		return errno
	}
	return nil
}
