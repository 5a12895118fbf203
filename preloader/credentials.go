// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// keys are the credentials that requests are signed with. Those of a role end after an
// hour or so, in the middle of a long pull: the SDK renews them by its own clock, and
// where a store finds them to have ended before that, they are renewed here.
type keys struct {
	cache *aws.CredentialsCache
	// renewing lets one request at a time renew them, for all that were refused.
	renewing sync.Mutex
}

// Retrieve returns the credentials as they are now.
func (k *keys) Retrieve(ctx context.Context) (aws.Credentials, error) {
	found, err := k.cache.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	return found, nil
}

// credentialsError says that credentials could not be had.
type credentialsError struct{ err error }

func (c *credentialsError) Error() string { return c.err.Error() }
func (c *credentialsError) Unwrap() error { return c.err }

// expired says that the store found credentials to have ended, and that there are no
// others yet.
type expired struct{ err error }

func (e *expired) Error() string { return e.err.Error() }
func (e *expired) Unwrap() error { return e.err }

// renew looks at a refusal of a request that was signed with used. It reports whether
// there are other credentials now. The error, if any, is an *expired: those that ended
// would have had to be renewed, but could not be, which may pass.
func (k *keys) renew(ctx context.Context, refusal error, used aws.Credentials) (bool, error) {
	if k == nil || !outdated(refusal) {
		return false, nil
	}
	k.renewing.Lock()
	defer k.renewing.Unlock()
	now, err := k.cache.Retrieve(ctx)
	if err == nil && sameKeys(now, used) {
		k.cache.Invalidate()
		now, err = k.cache.Retrieve(ctx)
	}
	switch {
	case err != nil:
		return false, &expired{err}
	case !sameKeys(now, used):
		return true, nil
	case now.CanExpire && saysExpired(refusal): // whoever gives them has not renewed them yet
		return false, &expired{refusal}
	}
	return false, nil
}

func sameKeys(a, b aws.Credentials) bool {
	return a.AccessKeyID == b.AccessKeyID && a.SecretAccessKey == b.SecretAccessKey && a.SessionToken == b.SessionToken
}

// endedCodes are the codes by which stores say that credentials are no longer good.
var endedCodes = []string{"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId"}

func saysExpired(err error) bool {
	api, ok := errors.AsType[smithy.APIError](err)
	return ok && slices.Contains(endedCodes, api.ErrorCode())
}

// outdated reports whether a refusal may be for credentials that have ended. The answer
// to a HEAD has no body that would say so.
func outdated(err error) bool {
	if saysExpired(err) {
		return true
	}
	answer, ok := errors.AsType[*smithyhttp.ResponseError](err)
	if !ok || answer.Response == nil || answer.Response.Request == nil || answer.Response.Request.Method != http.MethodHead {
		return false
	}
	switch answer.HTTPStatusCode() {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return true
	}
	return false
}

// haveCredentials fetches the credentials once before they are needed, because
// from within a request their absence looks like any other trouble. An agent or a token
// service that was named is given time: it may be starting with the node.
func haveCredentials(ctx context.Context, provider aws.CredentialsProvider, opts Options) error {
	if opts.Anonymous {
		return nil
	}
	for n := 1; ; n++ {
		err := retrieveBy(ctx, provider, opts.ConnectTimeout+opts.ReadTimeout)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if n >= opts.Attempts || !namesProvider() || !passes(err) {
			return noCredentials(err)
		}
		if err := sleep(ctx, delayBefore(n, err)); err != nil {
			return err
		}
	}
}

// errSilent says that whoever gives credentials does not answer.
var errSilent = errors.New("whoever gives them does not answer")

// retrieveBy fetches credentials within so long. The SDK has no bound of its own.
func retrieveBy(ctx context.Context, provider aws.CredentialsProvider, longest time.Duration) error {
	if longest > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, longest, errSilent)
		defer cancel()
	}
	_, err := provider.Retrieve(ctx)
	if err != nil && errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

func noCredentials(err error) *ExitError {
	if status := statusOf(err); status != 0 { // an answer may say nothing else
		err = fmt.Errorf("%w (status %d)", err, status)
	}
	return &ExitError{
		Code: ExitDenied, Reason: "NoCredentials", Cause: "no usable AWS credentials were found",
		Advice: "Give the service a ServiceAccount with an S3 secret or a role, " +
			"or annotate the secret with serving.kserve.io/s3-useanoncredential for a public bucket; " +
			"outside of a pod, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
		Err: err,
	}
}

// namesProvider reports whether the environment says where credentials come from, as
// the ServiceAccounts of a cluster with roles do.
func namesProvider() bool {
	for _, name := range []string{
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
	} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// statusOf returns the status of the answer that an error is about, or 0.
func statusOf(err error) int {
	var answer interface{ HTTPStatusCode() int }
	if errors.As(err, &answer) {
		return answer.HTTPStatusCode()
	}
	return 0
}

// passes reports whether whoever gives credentials may give them if asked again.
func passes(err error) bool {
	if status := statusOf(err); status != 0 {
		return status >= http.StatusInternalServerError || status == http.StatusTooManyRequests
	}
	_, unsent := errors.AsType[*smithyhttp.RequestSendError](err)
	return unsent || errors.Is(err, errSilent)
}

// keepStoreFromTokenService takes a variable out of the environment that the SDK would
// use for its token service too: KServe sets it for the store alone, and AWS's stores
// give no tokens. Other stores do, at the same address.
func keepStoreFromTokenService() error {
	if !isAmazon(os.Getenv("AWS_ENDPOINT_URL")) {
		return nil
	}
	return os.Unsetenv("AWS_ENDPOINT_URL")
}

// isAmazon reports whether an endpoint is one of AWS's own.
func isAmazon(endpoint string) bool {
	host := hostOf(endpoint)
	for _, domain := range []string{".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws"} {
		if strings.HasSuffix(host, domain) {
			return true
		}
	}
	return false
}
