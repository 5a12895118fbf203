// SPDX-License-Identifier: Apache-2.0

package preloader

import (
	"net/http"
	"strings"
	"testing"
)

// TestRefusalsSayWhatToMend has the store refuse the listing.
func TestRefusalsSayWhatToMend(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		code   string
		env    settings
		want   ExitCode
		reason string
		text   string
	}{
		"no permission":                   {http.StatusForbidden, "AccessDenied", nil, ExitDenied, "AccessDenied", "s3:ListBucket"},
		"a key that the store knows not":  {http.StatusForbidden, "InvalidAccessKeyId", nil, ExitDenied, "AccessDenied", "Check AWS_ACCESS_KEY_ID"},
		"the same, as versitygw says it":  {http.StatusNotFound, "XAdminUserNotFound", nil, ExitDenied, "AccessDenied", "Check AWS_ACCESS_KEY_ID"},
		"a secret of another key":         {http.StatusForbidden, "SignatureDoesNotMatch", nil, ExitDenied, "AccessDenied", "Check AWS_SECRET_ACCESS_KEY"},
		"a token that is over":            {http.StatusBadRequest, "ExpiredToken", nil, ExitDenied, "AccessDenied", "has expired"},
		"a token of another key":          {http.StatusBadRequest, "InvalidToken", nil, ExitDenied, "AccessDenied", "AWS_SESSION_TOKEN"},
		"a clock that is wrong":           {http.StatusForbidden, "RequestTimeTooSkewed", nil, ExitDenied, "ClockSkew", "clock"},
		"a bucket of another account":     {http.StatusForbidden, "AccessDenied", settings{"PRELOADER_BUCKET_OWNER": "1"}, ExitDenied, "AccessDenied", "PRELOADER_BUCKET_OWNER"},
		"no bucket":                       {http.StatusNotFound, "NoSuchBucket", nil, ExitNotFound, "NoSuchBucket", "bucket models does not exist"},
		"a request that it does not like": {http.StatusBadRequest, "AuthorizationHeaderMalformed", nil, ExitConfig, "BadRequest", "region"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFaultServer(t)
			s.put("m/model", noise(1, 100))
			s.faults(func(a asked) fault {
				if a.op == "List" {
					return fault{status: tc.status, code: tc.code}
				}
				return fault{}
			})
			out := run(t, with(serverSettings(s), tc.env), "s3://models/m", t.TempDir())
			wantCode(t, out, tc.want, tc.reason)
			if !strings.Contains(out.last, tc.text) || !strings.Contains(out.last, tc.code) {
				t.Errorf("the message lacks %q or %q:\n%s", tc.text, tc.code, out.last)
			}
		})
	}
}

func TestHTTPSToAPlainEndpointIsToldAtOnce(t *testing.T) {
	s := newFaultServer(t)
	env := with(serverSettings(s), settings{"AWS_ENDPOINT_URL": strings.Replace(s.URL, "http://", "https://", 1)})
	out := run(t, env, "s3://models/m", t.TempDir())
	wantCode(t, out, ExitConfig, "NotHTTPS")
	if !strings.Contains(out.last, "Write it as http://") {
		t.Errorf("message %s", out.last)
	}
}

func TestAStoreThatDoesNotAnswerIsSpokenOf(t *testing.T) {
	s := newFaultServer(t)
	s.put("m/model", noise(1, 100))
	s.faults(func(a asked) fault {
		if a.op == "List" && a.seen < 3 {
			return fault{status: http.StatusInternalServerError, code: "InternalError"}
		}
		return fault{}
	})
	out := run(t, serverSettings(s), "s3://models/m", t.TempDir())
	wantCode(t, out, ExitOK, "Completed")
	if n := strings.Count(out.log, "trying again what=listing failures=2 most=8 cause="); n != 1 {
		t.Errorf("the log speaks %d times of the trouble, want once:\n%s", n, out.log)
	}
}

// TestAModelThatIsNotThereIsSought asks for models that are not there.
func TestAModelThatIsNotThereIsSought(t *testing.T) {
	s := newFaultServer(t)
	for _, key := range []string{"llama/model", "team/bert/model", "team/gpt2/a/b", "team/notes.txt"} {
		s.put(key, noise(1, 100))
	}
	for source, want := range map[string]string{
		"s3://models/lama":         "Did you mean s3://models/llama?",
		"s3://models/team/bart/":   "Did you mean s3://models/team/bert?",
		"s3://models/team/note":    "Did you mean s3://models/team/notes.txt?",
		"s3://models/team/mistral": "What is in s3://models/team/: bert, gpt2, notes.txt. Check the path",
		"s3://models/tema/bert":    "Did you mean s3://models/team?",
		"s3://models/nothing/here": "What is in s3://models/: llama, team. Check the path",
	} {
		out := run(t, serverSettings(s), source, t.TempDir())
		wantCode(t, out, ExitNotFound, "NoModel")
		if !strings.Contains(out.last, want) {
			t.Errorf("%s: the message lacks %q:\n%s", source, want, out.last)
		}
	}
}
