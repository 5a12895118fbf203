// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"bytes"
	"context"
	"crypto/tls"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// newS3Client returns a client that follows KServe's S3 settings. The SDK's
// default chain finds credentials: static, web identity, pod identity, instance.
func newS3Client(ctx context.Context, opts Options, conns int) (*s3.Client, error) {
	load := []func(*config.LoadOptions) error{
		config.WithRegion(opts.Region),
		config.WithHTTPClient(httpClient(opts, conns)),
		// Ranges have no checksum to validate, and the SDK's CRC64NVME is slow;
		// the preloader checks whole files itself.
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	// The SDK opens the file that this names even where checks are off, and
	// words its own error about it.
	if err := os.Unsetenv("AWS_CA_BUNDLE"); err != nil {
		return nil, err
	}
	if opts.CABundle != "" {
		pem, err := os.ReadFile(opts.CABundle)
		if err != nil {
			return nil, &ExitError{
				Code: ExitConfig, Reason: "CABundle", Cause: "the CA bundle cannot be read",
				Advice: "Check AWS_CA_BUNDLE, or CA_BUNDLE_CONFIGMAP_NAME and its mount.", Err: err,
			}
		}
		load = append(load, config.WithCustomCABundle(bytes.NewReader(pem)))
	}
	if opts.AccessKeyID != "" && opts.SecretAccessKey != "" {
		load = append(load, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(opts.AccessKeyID, opts.SecretAccessKey, "")))
	}
	if opts.Anonymous {
		load = append(load, config.WithCredentialsProvider(aws.AnonymousCredentials{}))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, &ExitError{
			Code: ExitConfig, Reason: "Configuration", Cause: "the AWS configuration cannot be loaded",
			Advice: "Check the AWS_* environment variables and the CA bundle.", Err: err,
		}
	}
	if err := haveCredentials(ctx, cfg.Credentials, opts); err != nil {
		return nil, err
	}
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		if opts.Endpoint != "" {
			o.BaseEndpoint = aws.String(opts.Endpoint)
			// Like boto3: a custom endpoint rarely has a name for each bucket.
			o.UsePathStyle = !opts.VirtualHosted
		}
		o.UseAccelerate = opts.Accelerate
		for name, value := range opts.headers() {
			o.APIOptions = append(o.APIOptions, smithyhttp.AddHeaderValue(name, value))
		}
		if isGoogle(opts.Endpoint) {
			o.APIOptions = append(o.APIOptions, leaveEncodingUnsigned)
		}
		// Retries are ours, in retry.go: the SDK's give up on some statuses, and
		// share a budget that many small troubles would use up.
		o.Retryer = aws.NopRetryer{}
		o.DisableLogOutputChecksumValidationSkipped = true
	}), nil
}

const (
	headerPayer = "X-Amz-Request-Payer"
	headerOwner = "X-Amz-Expected-Bucket-Owner"
)

// headers are those that every request carries.
func (o Options) headers() map[string]string {
	all := map[string]string{}
	if o.RequesterPays {
		all[headerPayer] = "requester"
	}
	if o.BucketOwner != "" {
		all[headerOwner] = o.BucketOwner
	}
	return all
}

// isGoogle reports whether an endpoint is Google Cloud Storage's S3 interface.
func isGoogle(endpoint string) bool {
	u, err := url.Parse(endpoint)
	return err == nil && strings.HasPrefix(u.Hostname(), "storage") && strings.HasSuffix(u.Hostname(), ".googleapis.com")
}

// leaveEncodingUnsigned removes a header that the SDK signs and that Google
// rewrites on the way, which would make every signature wrong.
func leaveEncodingUnsigned(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("LeaveEncodingUnsigned",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
			middleware.FinalizeOutput, middleware.Metadata, error,
		) {
			if r, ok := in.Request.(*smithyhttp.Request); ok {
				r.Header.Del("Accept-Encoding")
			}
			return next.HandleFinalize(ctx, in)
		}), "Signing", middleware.Before)
}

// haveCredentials fetches the credentials once before they are needed, because
// from within a request their absence looks like any other trouble.
func haveCredentials(ctx context.Context, provider aws.CredentialsProvider, opts Options) error {
	if opts.Anonymous {
		return nil
	}
	_, err := provider.Retrieve(ctx)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return &ExitError{
		Code: ExitDenied, Reason: "NoCredentials", Cause: "no usable AWS credentials were found",
		Advice: "Give the service a ServiceAccount with an S3 secret or a role, " +
			"or annotate the secret with serving.kserve.io/s3-useanoncredential for a public bucket.",
		Err: err,
	}
}

// httpClient returns a client that keeps one connection for each request in
// flight. HTTP/2 would put them all on one connection and one read loop.
func httpClient(opts Options, conns int) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithTransportOptions(func(t *http.Transport) {
			t.DialContext = newDialer(opts.ConnectTimeout).DialContext
			t.MaxIdleConns = conns + 2
			t.MaxIdleConnsPerHost = conns + 2
			t.TLSHandshakeTimeout = opts.ConnectTimeout
			t.ResponseHeaderTimeout = opts.ReadTimeout
			t.ForceAttemptHTTP2 = false
			t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			t.DisableCompression = true
			// Larger read buffers would add a copy: reads as large as ours pass
			// by a buffer of the default size.
			t.ReadBufferSize = 0
			if t.TLSClientConfig == nil {
				t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
			}
			t.TLSClientConfig.InsecureSkipVerify = !opts.VerifyTLS
		})
}
