// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const adviceCredentials = "Check the secret of the service's ServiceAccount, or its role, " +
	"and that it allows s3:ListBucket and s3:GetObject here."

// explain turns an SDK error into what the engine understands: a *ExitError where
// no retry helps, errChanged, a *throttled, or the error itself. what is the
// key or prefix in question.
func (s *s3Source) explain(err error, what string) error {
	// Trouble with credentials is not the store's, and may pass.
	if c, ok := errors.AsType[*credentialsError](err); ok {
		return c
	}
	if e, ok := errors.AsType[*expired](err); ok {
		return e
	}
	if f := explainTLS(err); f != nil {
		return f
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return &ExitError{
			Code: ExitConfig, Reason: "NotHTTPS", Cause: "the endpoint speaks plain HTTP",
			Advice: "Write it as http:// in AWS_ENDPOINT_URL, or set S3_USE_HTTPS to 0 beside S3_ENDPOINT.", Err: barest(err),
		}
	}
	if unsent, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
		return unsent.Err // all that the SDK puts around it says nothing
	}
	var answer *smithyhttp.ResponseError
	if !errors.As(err, &answer) {
		return err
	}
	code := ""
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	return s.explainStatus(err, answer, code, what)
}

func (s *s3Source) explainStatus(err error, answer *smithyhttp.ResponseError, code, what string) error {
	uri := "s3://" + s.bucket + "/" + what
	switch status := answer.HTTPStatusCode(); {
	case status == http.StatusPreconditionFailed, status == http.StatusRequestedRangeNotSatisfiable:
		return errChanged
	case code == "NoSuchBucket":
		return &ExitError{
			Code: ExitNotFound, Reason: "NoSuchBucket", Cause: "bucket " + s.bucket + " does not exist",
			Advice: "Check the bucket's name in the storage URI, and the endpoint and region.", Err: brief(err, status, code),
		}
	case code == "RequestTimeTooSkewed":
		return &ExitError{
			Code: ExitDenied, Reason: "ClockSkew", Cause: "the clock of this node is too far from the store's",
			Advice: "The store's clock says " + strconv.Quote(answer.Response.Header.Get("Date")) +
				"; set the node's, best by a time service.", Err: brief(err, status, code),
		}
	case status == http.StatusUnauthorized, status == http.StatusForbidden, accessCodes[code] != "":
		return s.refused(uri, code, brief(err, status, code))
	case status == http.StatusNotFound:
		return &ExitError{
			Code: ExitNotFound, Reason: "NotFound", Cause: uri + " does not exist",
			Advice: "Check the path in the storage URI; it may have been removed during the download.",
			Err:    brief(err, status, code),
		}
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return &throttled{err: brief(err, status, code), after: retryAfter(answer.Response)}
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout, status == http.StatusTooEarly,
		code == "RequestTimeout":
		return brief(err, status, code)
	case status >= http.StatusBadRequest, status >= http.StatusMultipleChoices:
		return &ExitError{
			Code: ExitConfig, Reason: "BadRequest", Cause: "the store refused the request for " + uri,
			Advice: "Check the endpoint, the region and the addressing style.", Err: brief(err, status, code),
		}
	}
	// The answer was good but could not be read: the line broke.
	return err
}

// accessCodes are answers that speak of credentials, with what to do about each.
var accessCodes = map[string]string{ //nolint:gosec // advice, not secrets
	"InvalidAccessKeyId":    adviceUnknownKey,
	"XAdminUserNotFound":    adviceUnknownKey, // versitygw's word for it, with status 404
	"InvalidToken":          "Check AWS_SESSION_TOKEN: it must belong to the key, and be empty for a key of long life.",
	"ExpiredToken":          adviceExpired,
	"ExpiredTokenException": adviceExpired,
	"TokenRefreshRequired":  adviceExpired,
	"SignatureDoesNotMatch": "Check AWS_SECRET_ACCESS_KEY: it does not belong to the key, " +
		"or has a blank or a line break too much.",
}

const (
	adviceUnknownKey = "Check AWS_ACCESS_KEY_ID, and whether it is of this endpoint: the store does not know it."
	adviceExpired    = "The session token has expired: renew it, or give the service a role, whose tokens are renewed."
)

// refused words a refusal of credentials, or of what they allow.
func (s *s3Source) refused(uri, code string, err error) *ExitError {
	f := &ExitError{
		Code: ExitDenied, Reason: "AccessDenied", Cause: "the store refused access to " + uri,
		Advice: firstOf(accessCodes[code], adviceCredentials), Err: err,
	}
	if s.owned && accessCodes[code] == "" {
		f.Advice += " The bucket may also be of another account than PRELOADER_BUCKET_OWNER."
	}
	return f
}

// barest is the innermost error, without what an SDK puts around it.
func barest(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// brief keeps of an SDK error what a person can use.
func brief(err error, status int, code string) error {
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorMessage() != "" {
		return errors.New(strconv.Itoa(status) + " " + code + ": " + api.ErrorMessage())
	}
	return errors.New(strconv.Itoa(status) + " " + firstOf(code, http.StatusText(status)))
}

// explainTLS recognises certificates that no retry will make valid.
func explainTLS(err error) *ExitError {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var host x509.HostnameError
	var verification *tls.CertificateVerificationError
	if !errors.As(err, &unknown) && !errors.As(err, &invalid) && !errors.As(err, &host) && !errors.As(err, &verification) {
		return nil
	}
	return &ExitError{
		Code: ExitConfig, Reason: "Certificate", Cause: "the endpoint's certificate is not trusted",
		Advice: "Give its authority in AWS_CA_BUNDLE or a CA bundle ConfigMap, or set S3_VERIFY_SSL to 0.", Err: barest(err),
	}
}

func retryAfter(r *smithyhttp.Response) time.Duration {
	if r == nil {
		return 0
	}
	seconds, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if err != nil || seconds < 0 {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, time.Minute)
}
