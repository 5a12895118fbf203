// SPDX-License-Identifier: Apache-2.0

package gpu

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// session is the driver, initialised, and the GPUs that it shows.
type session struct {
	opts    Options
	cuda    *cuda
	nvml    *nvml
	main    *thread
	devices []*device
	report  *Report
}

// start loads the driver's libraries, initialises them and lists the GPUs. Trouble
// with NVML is a finding, because the driver may work without it.
func start(ctx context.Context, opts Options, report *Report) (*session, error) {
	s := &session{opts: opts, report: report, main: newThread(opts.Stall)}
	if err := s.startNVML(ctx); err != nil {
		if s.main.stuck() {
			return s, err
		}
		report.add(explain(err))
	}
	if err := s.startCUDA(ctx); err != nil {
		return s, err
	}
	err := s.list(ctx)
	return s, err
}

func (s *session) startNVML(ctx context.Context) error {
	var n *nvml
	var err error
	if lost := s.main.do(ctx, "loading "+nvmlLibrary, func() { n, err = openNVML() }); lost != nil {
		return lost
	}
	if err != nil {
		return err
	}
	var driver string
	lost := s.main.do(ctx, "nvmlInit_v2", func() {
		if err = n.check("nvmlInit_v2", n.initialize()); err != nil || n.driverVersion == nil {
			return
		}
		const length = 80
		text := make([]byte, length)
		if n.driverVersion(&text[0], length) == nvmlSuccess {
			driver = textOf(text)
		}
	})
	if lost != nil {
		return lost
	}
	if err != nil {
		return err
	}
	s.nvml, s.report.Driver.Version = n, driver
	return nil
}

func (s *session) startCUDA(ctx context.Context) error {
	var c *cuda
	var err error
	if lost := s.main.do(ctx, "loading "+cudaLibrary, func() { c, err = openCUDA() }); lost != nil {
		return lost
	}
	if err != nil {
		return err
	}
	s.cuda = c
	// The version is told before initialising, which is where a driver that is too old
	// for the machine fails.
	var version int32
	if err := s.call(ctx, "cuDriverGetVersion", func() result { return c.driverVersion(&version) }); err != nil {
		return err
	}
	s.report.Driver.CUDA = fmt.Sprintf("%d.%d", version/1000, version%1000/10)
	if err := s.call(ctx, "cuInit", func() result { return c.initialize(0) }); err != nil {
		return err
	}
	return s.opts.CUDA.check(version)
}

// list opens a thread for every GPU. The contexts are not made yet.
func (s *session) list(ctx context.Context) error {
	var count int32
	if err := s.call(ctx, "cuDeviceGetCount", func() result { return s.cuda.deviceCount(&count) }); err != nil {
		return err
	}
	if count == 0 {
		return &cudaError{call: "cuDeviceGetCount", code: noDevice, name: "CUDA_ERROR_NO_DEVICE", text: "the count is 0"}
	}
	s.report.Devices = make([]Device, count)
	for ordinal := range count {
		i := int(ordinal)
		s.report.Devices[i].Index = i
		s.devices = append(s.devices, &device{
			cuda: s.cuda, nvml: s.nvml, thread: newThread(s.opts.Stall),
			index: i, ordinal: ordinal, info: &s.report.Devices[i],
		})
	}
	if int(count) < s.opts.Devices {
		return &tooFewError{want: s.opts.Devices, got: int(count)}
	}
	return nil
}

func (s *session) call(ctx context.Context, name string, f func() result) error {
	var err error
	if lost := s.main.do(ctx, name, func() { err = s.cuda.check(name, f()) }); lost != nil {
		return lost
	}
	return err
}

// end closes what start opened. Threads whose last call did not come back are left
// behind, and so is NVML then.
func (s *session) end(ctx context.Context) {
	clean := true
	for i, d := range s.devices {
		if err := d.close(ctx); err != nil {
			s.report.add(explain(err).on(i))
		}
		clean = clean && !d.thread.stuck()
	}
	if clean && s.nvml != nil {
		_ = s.main.do(ctx, "nvmlShutdown", func() { s.nvml.shutdown() })
	}
	s.main.close()
}

// tooFewError says that fewer GPUs are there than asked for.
type tooFewError struct{ want, got int }

func (t *tooFewError) Error() string {
	return fmt.Sprintf("the container sees %d GPUs, %d are asked for", t.got, t.want)
}

// CUDAVersion is a version of the CUDA driver API such as 12.4. The zero value stands
// for any.
type CUDAVersion struct{ Major, Minor int }

// String writes the version as people do.
func (v CUDAVersion) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// oldDriverError says that the driver supports an older CUDA than asked for.
type oldDriverError struct{ want, got CUDAVersion }

func (o *oldDriverError) Error() string {
	return fmt.Sprintf("the driver supports CUDA up to %v, %v is asked for", o.got, o.want)
}

// check compares with a version as the driver codes it: 12040 for 12.4.
func (v CUDAVersion) check(driver int32) error {
	got := CUDAVersion{int(driver / 1000), int(driver % 1000 / 10)}
	if c := cmp.Or(cmp.Compare(got.Major, v.Major), cmp.Compare(got.Minor, v.Minor)); c < 0 {
		return &oldDriverError{want: v, got: got}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// since returns the seconds since a moment, never 0.
func since(moment time.Time) float64 { return max(time.Since(moment).Seconds(), 1e-9) }
