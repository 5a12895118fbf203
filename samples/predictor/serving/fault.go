// SPDX-License-Identifier: Apache-2.0

package serving

import (
	"errors"
	"fmt"
	"net/http"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fault is an error that a client may read, with the gRPC code that all protocols take their own from.
type fault struct {
	code    codes.Code
	message string
}

// Error returns the message.
func (f *fault) Error() string { return f.message }

// GRPCStatus lets gRPC send the fault as it is.
func (f *fault) GRPCStatus() *status.Status { return status.New(f.code, f.message) }

// invalid says what is wrong with a field of the request.
func invalid(field, format string, args ...any) error {
	return &fault{codes.InvalidArgument, field + ": " + fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &fault{codes.NotFound, fmt.Sprintf(format, args...)}
}

func unavailable(format string, args ...any) error {
	return &fault{codes.Unavailable, fmt.Sprintf(format, args...)}
}

// httpStatus returns the HTTP status for an error of this package.
func httpStatus(err error) int {
	var f *fault
	if !errors.As(err, &f) {
		return http.StatusInternalServerError
	}
	switch f.code {
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.NotFound:
		return http.StatusNotFound
	case codes.ResourceExhausted:
		return http.StatusRequestEntityTooLarge
	case codes.Unavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
