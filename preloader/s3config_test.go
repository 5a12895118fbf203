// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestPullOverTLS(t *testing.T) {
	s := unstartedFaultServer(t)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	s.put("m/model", noise(1, 9*mebibyte))
	mount := t.TempDir()
	write := func(name string, pemType string, der []byte) string {
		path := filepath.Join(mount, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own := write("cabundle.crt", "CERTIFICATE", s.Certificate().Raw)
	junk := write("junk.crt", "NOTHING", []byte("junk"))
	cases := map[string]struct {
		env    settings
		code   ExitCode
		reason string
	}{
		"unknown authority":        {nil, ExitConfig, "Certificate"},
		"the service's own bundle": {settings{"AWS_CA_BUNDLE": own}, ExitOK, "Completed"},
		"the cluster's bundle": {
			settings{"CA_BUNDLE_CONFIGMAP_NAME": "ca", "CA_BUNDLE_VOLUME_MOUNT_POINT": mount},
			ExitOK,
			"Completed",
		},
		"a bundle from STORAGE_CONFIG": {
			settings{"STORAGE_CONFIG": `{"type":"s3","ca_bundle":"` + own + `"}`}, ExitOK, "Completed",
		},
		"checks turned off":                  {settings{"S3_VERIFY_SSL": "0"}, ExitOK, "Completed"},
		"checks turned off, missing bundle":  {settings{"S3_VERIFY_SSL": "False", "AWS_CA_BUNDLE": "/none"}, ExitOK, "Completed"},
		"a bundle that holds no certificate": {settings{"AWS_CA_BUNDLE": junk}, ExitConfig, "CABundle"},
		"a mounted bundle that is not there": {
			settings{"CA_BUNDLE_CONFIGMAP_NAME": "ca", "CA_BUNDLE_VOLUME_MOUNT_POINT": "/none"},
			ExitConfig,
			"CABundle",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			out := start(t, with(serverSettings(s), tc.env), "s3://models/m", t.TempDir()).outcome(t)
			wantCode(t, out, tc.code, tc.reason)
		})
	}
}

// TestPullAddressesAndSigns looks at requests as a proxy sees them, so that any
// host name will do.
func TestPullAddressesAndSigns(t *testing.T) {
	cases := map[string]struct {
		env  settings
		want func(r *http.Request) error
	}{
		"a custom endpoint has the bucket in the path": {
			settings{"AWS_ENDPOINT_URL": "http://minio.example:9000"},
			wantAddress("minio.example:9000", "/models"),
		},
		"a custom endpoint with the bucket in its name": {
			settings{"AWS_ENDPOINT_URL": "http://s3.example", "S3_USER_VIRTUAL_BUCKET": "true"},
			wantAddress("models.s3.example", "/"),
		},
		"S3_ENDPOINT": {
			settings{"S3_ENDPOINT": "minio.example:9000", "S3_USE_HTTPS": "0"},
			wantAddress("minio.example:9000", "/models"),
		},
		"the region is signed for": {
			settings{"AWS_ENDPOINT_URL": "http://minio.example", "AWS_DEFAULT_REGION": "eu-west-7"},
			wantAuthorization("Credential=id/", "/eu-west-7/s3/aws4_request"),
		},
		"credentials from STORAGE_CONFIG win": {
			settings{
				"AWS_ENDPOINT_URL": "http://minio.example",
				"STORAGE_CONFIG":   `{"type":"s3","access_key_id":"other-id","secret_access_key":"x"}`,
			},
			wantAuthorization("Credential=other-id/"),
		},
		"a session token goes along": {
			settings{"AWS_ENDPOINT_URL": "http://minio.example", "AWS_SESSION_TOKEN": "token-text"},
			func(r *http.Request) error {
				if got := r.Header.Get("X-Amz-Security-Token"); got != "token-text" {
					return fmt.Errorf("session token %q", got)
				}
				return nil
			},
		},
		"anonymous requests are not signed": {
			settings{"AWS_ENDPOINT_URL": "http://minio.example", "awsAnonymousCredential": "true", "AWS_ACCESS_KEY_ID": ""},
			func(r *http.Request) error {
				if got := r.Header.Get("Authorization"); got != "" {
					return fmt.Errorf("authorization %q", got)
				}
				return nil
			},
		},
		"Google gets no signed Accept-Encoding": {
			settings{"AWS_ENDPOINT_URL": "http://storage.googleapis.com"},
			func(r *http.Request) error {
				if got := r.Header.Get("Authorization"); strings.Contains(got, "accept-encoding") {
					return fmt.Errorf("authorization %q", got)
				}
				return nil
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model", noise(1, 9*mebibyte))
			var mu sync.Mutex
			var bad []error
			s.look(func(r *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if err := tc.want(r); err != nil {
					bad = append(bad, fmt.Errorf("%s %s: %w", r.Method, r.URL, err))
				}
			})
			env := with(serverSettings(s), settings{"AWS_ENDPOINT_URL": "", "http_proxy": s.URL})
			dir := t.TempDir()
			out := start(t, with(env, tc.env), "s3://models/m", dir).outcome(t)
			wantCode(t, out, ExitOK, "Completed")
			for _, err := range bad {
				t.Error(err)
			}
		})
	}
}

func wantAddress(host, path string) func(*http.Request) error {
	return func(r *http.Request) error {
		if r.Host != host || !strings.HasPrefix(r.URL.Path, path) {
			return fmt.Errorf("host %q, path %q; want %q, %q", r.Host, r.URL.Path, host, path)
		}
		return nil
	}
}

func wantAuthorization(parts ...string) func(*http.Request) error {
	return func(r *http.Request) error {
		for _, p := range parts {
			if got := r.Header.Get("Authorization"); !strings.Contains(got, p) {
				return fmt.Errorf("authorization %q, want %q in it", got, p)
			}
		}
		return nil
	}
}

func TestPullFollowsTheBucketsRegion(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 20*mebibyte))
	good := s.Config.Handler
	var mu sync.Mutex
	wrong := 0
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-central-1/s3/") {
			mu.Lock()
			wrong++
			mu.Unlock()
			w.Header().Set("X-Amz-Bucket-Region", "eu-central-1")
			refuse(w, http.StatusMovedPermanently, "PermanentRedirect")
			return
		}
		good.ServeHTTP(w, r)
	})
	wantCode(t, run(t, serverSettings(s), "s3://models/m", t.TempDir()), ExitOK, "Completed")
	if wrong != 1 {
		t.Errorf("%d requests went to the wrong region, want only the first", wrong)
	}
}

func TestPullWithoutAnyCredentials(t *testing.T) {
	s := newFaultServer(t)
	env := with(serverSettings(s), settings{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": t.TempDir()})
	out := start(t, env, "s3://models/m", t.TempDir()).outcome(t)
	wantCode(t, out, ExitDenied, "NoCredentials")
	if !strings.Contains(out.last, "ServiceAccount") {
		t.Errorf("termination message %q gives no advice", out.last)
	}
}

// certificateFile writes a certificate as a bundle has it.
func certificateFile(t *testing.T, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle.crt")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
