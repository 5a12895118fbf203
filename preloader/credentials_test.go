// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The servers that give credentials here are ours: they speak the protocols of EKS Pod
// Identity, of the token service and of EC2's instance metadata as far as the SDK's own
// providers ask, which are the real ones.

// giver gives credentials that are called from-giver-1, from-giver-2 and so on, and knows
// which of them a store would still take.
type giver struct {
	mu sync.Mutex
	// given counts credentials, and ended how many of them are no longer good.
	given, ended int
	// refuse, if not 0, is the status with which the next so many requests are answered.
	refuse, times int
	asked         int
	// silent has no request answered.
	silent bool
}

// next returns the name of the next credentials, or a status to refuse with.
func (g *giver) next() (string, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	if g.times > 0 {
		g.times--
		return "", g.refuse
	}
	g.given++
	return "from-giver-" + strconv.Itoa(g.given), 0
}

func (g *giver) counts() (asked, given int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked, g.given
}

// end ends all credentials that were given, and has the next requests refused.
func (g *giver) end(refuse, times int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended, g.refuse, g.times = g.given, refuse, times
}

// good reports whether a request is signed with credentials that have not ended.
func (g *giver) good(r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=from-giver-")
	text, _, _ := strings.Cut(rest, "/")
	n, err := strconv.Atoi(text)
	return err == nil && n > g.ended && r.Header.Get("X-Amz-Security-Token") == "token-"+text
}

const farFuture = "2099-01-01T00:00:00Z"

// container speaks as the agent of EKS Pod Identity does.
func (g *giver) container(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "the-token" || r.URL.Path != "/v1/credentials" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	name, status := g.next()
	if g.silent {
		<-r.Context().Done()
		return
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	_, _ = fmt.Fprintf(w, `{"AccessKeyId":%q,"SecretAccessKey":"s","Token":%q,"Expiration":%q}`,
		name, strings.Replace(name, "from-giver", "token", 1), farFuture)
}

// sts speaks as the token service does.
func (g *giver) sts(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("WebIdentityToken") != "the-token" || r.FormValue("RoleArn") != "arn:aws:iam::1:role/models" {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w,
			`<ErrorResponse><Error><Code>AccessDenied</Code><Message>the role is not yours</Message></Error></ErrorResponse>`)
		return
	}
	name, status := g.next()
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	_, _ = fmt.Fprintf(w,
		`<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>%s</AccessKeyId>`+
			`<SecretAccessKey>s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials>`+
			`</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
		name, strings.Replace(name, "from-giver", "token", 1), farFuture)
}

// metadata speaks as an EC2 instance does, with sessions.
func (g *giver) metadata(w http.ResponseWriter, r *http.Request) {
	const folder = "/latest/meta-data/iam/security-credentials/"
	switch {
	case r.Method == http.MethodPut && r.URL.Path == "/latest/api/token":
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
		_, _ = io.WriteString(w, "session")
	case r.Header.Get("X-Aws-Ec2-Metadata-Token") != "session":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == folder:
		_, _ = io.WriteString(w, "node-role")
	case r.URL.Path == folder+"node-role":
		name, status := g.next()
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		_, _ = fmt.Fprintf(w, `{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2024-01-01T00:00:00Z",`+
			`"AccessKeyId":%q,"SecretAccessKey":"s","Token":%q,"Expiration":%q}`,
			name, strings.Replace(name, "from-giver", "token", 1), farFuture)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// strict is a store that takes only what the giver's credentials sign, and answers
// others as S3 does: a HEAD without a body that would say why.
func strict(t *testing.T, g *giver) *faultServer {
	t.Helper()
	s := newFaultServer(t)
	plain := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case g.good(r):
			plain.ServeHTTP(w, r)
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusBadRequest)
		default:
			refuse(w, http.StatusBadRequest, "ExpiredToken")
		}
	})
	return s
}

func tokenFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte("the-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// roleSettings are those of the server without keys of its own.
func roleSettings(s *faultServer, of settings) settings {
	return with(with(serverSettings(s), settings{"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}), of)
}

// givers are ways to get credentials, by a server.
func givers(t *testing.T) map[string]func(g *giver) settings {
	t.Helper()
	serve := func(h http.HandlerFunc) string {
		server := httptest.NewServer(h)
		t.Cleanup(server.Close)
		return server.URL
	}
	return map[string]func(g *giver) settings{
		"EKS Pod Identity": func(g *giver) settings {
			return settings{
				"AWS_CONTAINER_CREDENTIALS_FULL_URI":     serve(g.container) + "/v1/credentials",
				"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": tokenFile(t),
			}
		},
		"a role for a ServiceAccount": func(g *giver) settings {
			return settings{
				"AWS_ROLE_ARN": "arn:aws:iam::1:role/models", "AWS_WEB_IDENTITY_TOKEN_FILE": tokenFile(t),
				"AWS_ENDPOINT_URL_STS": serve(g.sts),
			}
		},
		"a role of the instance": func(g *giver) settings {
			return settings{"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": serve(g.metadata)}
		},
	}
}

func TestPullOutlivesItsCredentials(t *testing.T) {
	moments := map[string]func(a asked) bool{
		"before a part is read":  func(a asked) bool { return a.op == "Get" && a.off > 0 },
		"before a head is read":  func(a asked) bool { return a.op == "Head" && a.key == "m/two" },
		"before the next page":   func(a asked) bool { return a.op == "List" && a.seen == 1 },
		"before a small file":    func(a asked) bool { return a.op == "Get" && a.key == "m/small" },
		"never, for comparison":  func(asked) bool { return false },
		"while they cannot come": func(a asked) bool { return a.op == "Get" && a.off > 0 },
	}
	for way, settle := range givers(t) {
		for when, now := range moments {
			t.Run(way+", "+when, func(t *testing.T) {
				g := &giver{}
				s := strict(t, g)
				s.pages = 2
				want := map[string][]byte{
					"one": noise(1, 20*mebibyte), "small": noise(2, 1000), "two": noise(3, 20*mebibyte),
				}
				for rel, data := range want {
					s.put("m/"+rel, data)
				}
				var once sync.Once
				s.faults(func(a asked) fault {
					if now(a) {
						once.Do(func() {
							times := 0
							if when == "while they cannot come" {
								times = 5 // more than the SDK's own tries
							}
							g.end(http.StatusServiceUnavailable, times)
						})
					}
					return fault{}
				})
				dir := t.TempDir()
				out := start(t, roleSettings(s, settle(g)), "s3://models/m", dir).outcome(t)
				wantCode(t, out, ExitOK, "Completed")
				wantTree(t, dir, want)
				if _, given := g.counts(); given > 2 {
					t.Errorf("credentials were given %d times, want at most twice", given)
				}
			})
		}
	}
}

func TestPullEndsWithCredentialsThatStayRefused(t *testing.T) {
	cases := map[string]struct {
		env  settings
		most int // requests
	}{
		"keys that cannot be renewed": {
			settings{"AWS_ACCESS_KEY_ID": "from-giver-0", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "token-0"}, 1,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model", noise(1, mebibyte))
			s.faults(func(asked) fault { return fault{status: http.StatusBadRequest, code: "ExpiredToken"} })
			out := start(t, with(serverSettings(s), tc.env), "s3://models/m", t.TempDir()).outcome(t)
			wantCode(t, out, ExitDenied, "AccessDenied")
			if got := s.count("List"); got > tc.most {
				t.Errorf("%d requests, want at most %d", got, tc.most)
			}
		})
	}
}

func TestPullEndsWhereNewCredentialsAreRefusedToo(t *testing.T) {
	for way, settle := range givers(t) {
		t.Run(way, func(t *testing.T) {
			g := &giver{ended: 1 << 20}
			s := strict(t, g)
			s.put("m/model", noise(1, mebibyte))
			out := start(t, roleSettings(s, settle(g)), "s3://models/m", t.TempDir()).outcome(t)
			wantCode(t, out, ExitDenied, "AccessDenied")
			if asked, _ := g.counts(); asked > 2 {
				t.Errorf("credentials were asked for %d times, want at most twice", asked)
			}
		})
	}
}

func TestPullTellsWhyTheTokenServiceRefuses(t *testing.T) {
	g := &giver{}
	s := strict(t, g)
	env := with(givers(t)["a role for a ServiceAccount"](g), settings{"AWS_ROLE_ARN": "arn:aws:iam::1:role/others"})
	out := start(t, roleSettings(s, env), "s3://models/m", t.TempDir()).outcome(t)
	wantCode(t, out, ExitDenied, "NoCredentials")
	if !strings.Contains(out.last, "the role is not yours") {
		t.Errorf("termination message %q does not tell the reason", out.last)
	}
}

func TestPullWaitsForAnAgentThatStarts(t *testing.T) {
	g := &giver{refuse: http.StatusServiceUnavailable, times: 4} // more than the SDK's own tries
	s := strict(t, g)
	s.put("m/model", noise(1, mebibyte))
	settle := givers(t)["EKS Pod Identity"]
	wantCode(t, start(t, roleSettings(s, settle(g)), "s3://models/m", t.TempDir()).outcome(t), ExitOK, "Completed")
}

func TestPullDoesNotWaitForASilentAgentForEver(t *testing.T) {
	s := newFaultServer(t)
	env := roleSettings(s, givers(t)["EKS Pod Identity"](&giver{silent: true}))
	env = with(env, settings{"S3_CONNECT_TIMEOUT": "0.2", "S3_READ_TIMEOUT": "0.2", "S3_MAX_ATTEMPTS": "2"})
	out := start(t, env, "s3://models/m", t.TempDir()).outcome(t)
	wantCode(t, out, ExitDenied, "NoCredentials")
	if !strings.Contains(out.last, "does not answer") {
		t.Errorf("termination message %q", out.last)
	}
}

func TestPullWithASharedCredentialsFile(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 9*mebibyte))
	s.look(func(r *http.Request) {
		if err := wantAuthorization("Credential=from-file/")(r); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = other\naws_secret_access_key = x\n\n" +
		"[models]\naws_access_key_id = from-file\naws_secret_access_key = s\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := roleSettings(s, settings{"AWS_SHARED_CREDENTIALS_FILE": path, "AWS_PROFILE": "models"})
	wantCode(t, start(t, env, "s3://models/m", t.TempDir()).outcome(t), ExitOK, "Completed")
}

// TestTokensGoToNobodyUnknown has the store's certificate not checked, or checked against
// a bundle, and looks at what that means for the token service.
func TestTokensGoToNobodyUnknown(t *testing.T) {
	g := &giver{}
	s := strict(t, g)
	s.put("m/model", noise(1, mebibyte))
	sts := httptest.NewUnstartedServer(http.HandlerFunc(g.sts))
	sts.Config.ErrorLog = log.New(io.Discard, "", 0)
	sts.StartTLS()
	defer sts.Close()
	env := roleSettings(s, settings{
		"AWS_ROLE_ARN": "arn:aws:iam::1:role/models", "AWS_WEB_IDENTITY_TOKEN_FILE": tokenFile(t),
		"AWS_ENDPOINT_URL_STS": sts.URL, "S3_MAX_ATTEMPTS": "1",
	})
	out := start(t, with(env, settings{"S3_VERIFY_SSL": "0"}), "s3://models/m", t.TempDir()).outcome(t)
	wantCode(t, out, ExitDenied, "NoCredentials")
	if asked, _ := g.counts(); asked != 0 {
		t.Error("the token went to a service with a certificate that nobody vouches for")
	}
	bundle := certificateFile(t, sts.Certificate().Raw)
	wantCode(t, start(t, with(env, settings{"AWS_CA_BUNDLE": bundle}), "s3://models/m", t.TempDir()).outcome(t),
		ExitOK, "Completed")
}

// TestTheTokenServiceIsNotTheStore looks, as a proxy, at where tokens would go if the
// endpoint is one of AWS's own stores, which KServe names by a variable for all services.
func TestTheTokenServiceIsNotTheStore(t *testing.T) {
	var mu sync.Mutex
	var hosts []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		hosts = append(hosts, r.Method+" "+r.Host)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	env := settings{
		"AWS_ENDPOINT_URL": "http://s3.eu-west-1.amazonaws.com", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_REGION": "eu-west-1",
		"AWS_ROLE_ARN": "arn:aws:iam::1:role/models", "AWS_WEB_IDENTITY_TOKEN_FILE": tokenFile(t), "S3_MAX_ATTEMPTS": "1",
		"http_proxy": proxy.URL, "https_proxy": proxy.URL,
	}
	s := newFaultServer(t)
	out := start(t, roleSettings(s, env), "s3://models/m", t.TempDir()).outcome(t)
	wantCode(t, out, ExitDenied, "NoCredentials")
	mu.Lock()
	defer mu.Unlock()
	for _, h := range hosts {
		if h != "CONNECT sts.eu-west-1.amazonaws.com:443" {
			t.Errorf("tokens go to %s", h)
		}
	}
	if len(hosts) == 0 {
		t.Error("the proxy saw nothing")
	}
}
