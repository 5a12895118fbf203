// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"time"
)

// Options is what steers the checks. [ParseOptions] fills it in; the zero value checks
// nothing well.
type Options struct {
	// Fail makes a failure the process's: the exit code tells. Without it the report
	// alone does.
	Fail bool
	// JSON writes the report as one line of JSON instead of text.
	JSON bool
	// Stall is how long one call into the driver may take. On a machine without
	// persistence mode, the first call initialises every GPU, which takes seconds each.
	Stall time.Duration
	// Deadline bounds the whole run; 0 means none.
	Deadline time.Duration
	// Wait is how long to wait for the fabric manager.
	Wait time.Duration

	// CUDA is the least version of CUDA that the driver must support.
	CUDA CUDAVersion
	// Devices is how many GPUs must be there, at least; 0 asks for one.
	Devices int
	// Memory is how many bytes must be free on the GPUs together.
	Memory int64
	// Link is how many bytes are copied each way to measure a link, in the best of three
	// rounds; 0 leaves the measurement out.
	Link int64

	// Buffers is how many page-locked buffers each GPU gets for loading, of BufferSize
	// bytes each.
	Buffers    int
	BufferSize int64
	// Readers is how many threads read files for each GPU.
	Readers int
	// ReadBack says how much of what was loaded is compared afterwards.
	ReadBack ReadBack
}

// ReadBack says how much of the bytes in GPU memory is copied back and compared.
type ReadBack string

const (
	// ReadBackSample compares sixteen pieces of each GPU, spread over what it holds.
	ReadBackSample ReadBack = "sample"
	// ReadBackAll compares everything.
	ReadBackAll ReadBack = "all"
	// ReadBackOff compares nothing.
	ReadBackOff ReadBack = "off"
)
