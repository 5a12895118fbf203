// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// newS3Client returns a client that follows KServe's S3 settings. The SDK's
// default chain finds credentials: static, web identity, pod identity, instance.
func newS3Client(ctx context.Context, opts Options, conns int) (*s3.Client, error) {
	// The SDK opens the file that this names even where checks are off, and
	// words its own error about it.
	if err := errors.Join(os.Unsetenv("AWS_CA_BUNDLE"), keepStoreFromTokenService()); err != nil {
		return nil, err
	}
	bundle, err := opts.readBundle()
	if err != nil {
		return nil, err
	}
	load := []func(*config.LoadOptions) error{
		config.WithRegion(opts.Region),
		config.WithLogger(logging.Nop{}), // what it would say is not in the form of this log
		// For credentials only: what is said about the store's certificate, by S3_VERIFY_SSL
		// or by a bundle of its own, does not hold for who gives them.
		config.WithHTTPClient(trusting(plainClient(opts), bundle.forCredentials(opts))),
		// Ranges have no checksum to validate, and the SDK's CRC64NVME is slow;
		// the preloader checks whole files itself.
		config.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
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
			Advice: "Check the AWS_* environment variables.", Err: err,
		}
	}
	if cache, ok := cfg.Credentials.(*aws.CredentialsCache); ok && !opts.Anonymous {
		cfg.Credentials = &keys{cache: cache}
	}
	if err := haveCredentials(ctx, cfg.Credentials, opts); err != nil {
		return nil, err
	}
	return s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = trusting(httpClient(opts, conns), bundle.authorities)
		if opts.Endpoint != "" {
			o.BaseEndpoint = aws.String(opts.Endpoint)
			// Like boto3: a custom endpoint rarely has a name for each bucket.
			o.UsePathStyle = !opts.VirtualHosted
		}
		o.UseAccelerate = opts.Accelerate
		o.APIOptions = append(o.APIOptions, boundAnswers)
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

// bundle is certificates of authorities, which is empty where none are given.
type bundle struct {
	pem         []byte
	authorities *x509.CertPool
}

// forCredentials returns the bundle and the system's own authorities, nil standing for
// these alone. It spares reading those, which takes longer than a small model, where the
// settings themselves hold the credentials and nobody is asked for them.
func (b bundle) forCredentials(opts Options) *x509.CertPool {
	if b.authorities == nil || opts.holdCredentials() {
		return b.authorities
	}
	all, err := x509.SystemCertPool()
	if err != nil {
		all = x509.NewCertPool()
	}
	all.AppendCertsFromPEM(b.pem)
	return all
}

// holdCredentials reports whether the SDK takes its credentials from the settings.
func (o Options) holdCredentials() bool {
	set := func(name string) bool { return os.Getenv(name) != "" }
	return o.Anonymous || o.AccessKeyID != "" && o.SecretAccessKey != "" ||
		set("AWS_ACCESS_KEY_ID") && set("AWS_SECRET_ACCESS_KEY") && !set("AWS_PROFILE") && !set("AWS_DEFAULT_PROFILE")
}

func (o Options) readBundle() (bundle, error) {
	if o.CABundle == "" {
		return bundle{}, nil
	}
	failure := &ExitError{
		Code: ExitConfig, Reason: "CABundle", Cause: "the CA bundle cannot be read",
		Advice: "Check AWS_CA_BUNDLE, or CA_BUNDLE_CONFIGMAP_NAME and its mount.",
	}
	pem, err := os.ReadFile(o.CABundle)
	if err != nil {
		failure.Err = err
		return bundle{}, failure
	}
	b := bundle{pem: pem, authorities: x509.NewCertPool()}
	if !b.authorities.AppendCertsFromPEM(pem) {
		failure.Cause = "the CA bundle " + strconv.Quote(o.CABundle) + " holds no certificate"
		return bundle{}, failure
	}
	return b, nil
}

// plainClient is for requests that are not to the store.
func plainClient(opts Options) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.TLSHandshakeTimeout, t.ResponseHeaderTimeout = opts.ConnectTimeout, opts.ReadTimeout
	})
}

// trusting has a client trust these authorities, or the system's if there are none.
func trusting(client *awshttp.BuildableClient, roots *x509.CertPool) *awshttp.BuildableClient {
	if roots == nil {
		return client
	}
	return client.WithTransportOptions(func(t *http.Transport) {
		if t.TLSClientConfig == nil {
			t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		t.TLSClientConfig.RootCAs = roots
	})
}

// isGoogle reports whether an endpoint is Google Cloud Storage's S3 interface.
func isGoogle(endpoint string) bool {
	host := hostOf(endpoint)
	return strings.HasPrefix(host, "storage") && strings.HasSuffix(host, ".googleapis.com")
}

// hostOf returns the host of an address, or nothing if it is none.
func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// largestAnswer bounds answers that the SDK reads whole: listings, heads and refusals. A
// page of a listing has less than 4 MiB.
const largestAnswer = 16 * mebibyte

// boundAnswers keeps an answer that does not end from filling the memory.
func boundAnswers(stack *middleware.Stack) error {
	return stack.Deserialize.Add(middleware.DeserializeMiddlewareFunc("BoundAnswers",
		func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (
			middleware.DeserializeOutput, middleware.Metadata, error,
		) {
			out, metadata, err := next.HandleDeserialize(ctx, in)
			r, ok := out.RawResponse.(*smithyhttp.Response)
			content := middleware.GetOperationName(ctx) == "GetObject" && ok && r.StatusCode < http.StatusMultipleChoices
			if ok && !content && r.Body != nil {
				r.Body = http.MaxBytesReader(nil, r.Body, largestAnswer)
			}
			return out, metadata, err
		}), middleware.After)
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
