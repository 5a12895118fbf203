// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
)

// ExitCode is what the process returns. KServe only tells zero from the rest;
// the values follow sysexits.h so that scripts and people can tell more.
type ExitCode int

const (
	// ExitOK says that every file is in place and passed its check.
	ExitOK ExitCode = 0
	// ExitTransient says that a second try may well work.
	ExitTransient ExitCode = 1
	// ExitUsage says that the command line was wrong.
	ExitUsage ExitCode = 64
	// ExitIntegrity says that bytes did not match what the store promises.
	ExitIntegrity ExitCode = 65
	// ExitNotFound says that the bucket, the prefix or an object is missing.
	ExitNotFound ExitCode = 66
	// ExitUnavailable says that the endpoint did not answer within the retries.
	ExitUnavailable ExitCode = 69
	// ExitNoSpace says that the destination cannot take the files.
	ExitNoSpace ExitCode = 73
	// ExitDenied says that the store refused the credentials.
	ExitDenied ExitCode = 77
	// ExitConfig says that the configuration is wrong or asks for what this
	// program does not do.
	ExitConfig ExitCode = 78
	// ExitGPU says that a GPU is not fit for work, if that was asked to be a failure.
	ExitGPU ExitCode = 80
	// ExitInterrupt says that SIGINT ended the run.
	ExitInterrupt ExitCode = 130
	// ExitTerminated says that SIGTERM ended the run.
	ExitTerminated ExitCode = 143
)

// ExitError is an error for people: what happened, and what to do about it.
type ExitError struct {
	// Code is the exit code that the failure asks for.
	Code ExitCode
	// Reason names the failure in one CamelCase word.
	Reason string
	// Cause is one sentence without a full stop that names what was touched.
	Cause string
	// Advice is one sentence that says what to do next; it may be empty.
	Advice string
	// Err is the error beneath, if there is one.
	Err error
}

// Error returns the cause, followed by the error beneath it.
func (f *ExitError) Error() string {
	if f.Err == nil {
		return f.Cause
	}
	return fmt.Sprintf("%s: %v", f.Cause, f.Err)
}

// Unwrap returns the error beneath.
func (f *ExitError) Unwrap() error { return f.Err }

// asFailure returns the ExitError inside err, or makes a transient one of it.
func asFailure(err error) *ExitError {
	if f, ok := errors.AsType[*ExitError](err); ok {
		return f
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &ExitError{
			Code: ExitUnavailable, Reason: "DeadlineExceeded", Cause: "the run did not end before its deadline",
			Advice: "Raise PRELOADER_DEADLINE, or give the container more CPU or network.", Err: err,
		}
	}
	return &ExitError{Code: ExitTransient, Reason: "Failed", Cause: "the run failed", Err: err}
}

func usageFailure(format string, args ...any) *ExitError {
	return &ExitError{Code: ExitUsage, Reason: "Usage", Cause: fmt.Sprintf(format, args...)}
}

func configFailure(advice, format string, args ...any) *ExitError {
	return &ExitError{Code: ExitConfig, Reason: "Configuration", Cause: fmt.Sprintf(format, args...), Advice: advice}
}
