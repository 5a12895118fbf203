// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
)

// counting answers every request with a number that no other answer has.
type counting struct{ asked int }

func (c *counting) RoundTrip(request *http.Request) (*http.Response, error) {
	c.asked++
	recorder := httptest.NewRecorder()
	if request.Method == http.MethodGet && request.URL.Path == "/api/v1/namespaces/a/services/refused" {
		recorder.WriteHeader(http.StatusTooManyRequests)
	}
	_, _ = recorder.WriteString(strconv.Itoa(c.asked))
	return recorder.Result(), nil
}

func TestMemoForgetsWhatMayHaveChanged(t *testing.T) {
	const services = "/api/v1/namespaces/a/services"
	for what, tc := range map[string]struct {
		read string
		// between is what happens between the first read and the second: a method, a path.
		between [2]string
		// wantAsked says whether the API server is asked again.
		wantAsked bool
	}{
		"nothing happened":                            {services, [2]string{}, false},
		"one of them was made":                        {services, [2]string{http.MethodPost, services}, true},
		"the status of one was written":               {services, [2]string{http.MethodPatch, services + "/s/status"}, true},
		"one was deleted, and it is read by name":     {services + "/s", [2]string{http.MethodDelete, services + "/s"}, true},
		"one was written in another namespace":        {services, [2]string{http.MethodPut, "/api/v1/namespaces/b/services/s"}, false},
		"something else was written":                  {services, [2]string{http.MethodPut, "/api/v1/namespaces/a/configmaps/c"}, false},
		"a namesake of another group was written":     {services, [2]string{http.MethodPut, "/apis/g/v1/namespaces/a/services/s"}, false},
		"it was written in another version":           {"/apis/g/v1/namespaces/a/things", [2]string{http.MethodPut, "/apis/g/v2/namespaces/a/things/t"}, true},
		"another was read":                            {services, [2]string{http.MethodGet, services + "/s"}, false},
		"it is a watch":                               {services + "?watch=true", [2]string{}, true},
		"it is in no namespace":                       {"/api/v1/nodes", [2]string{}, true},
		"it is a namespace":                           {"/api/v1/namespaces/a", [2]string{}, true},
		"the API server had no answer the first time": {services + "/refused", [2]string{}, true},
	} {
		t.Run(what, func(t *testing.T) {
			server := &counting{}
			m := &memo{next: server, known: map[collection]map[string]answer{}, writes: map[collection]int{}}
			first := ask(t, m, http.MethodGet, tc.read)
			if tc.between[0] != "" {
				ask(t, m, tc.between[0], tc.between[1])
			}
			if asked := ask(t, m, http.MethodGet, tc.read) != first; asked != tc.wantAsked {
				t.Errorf("asked again: %v, want %v", asked, tc.wantAsked)
			}
		})
	}
}

func ask(t *testing.T, through http.RoundTripper, method, path string) string {
	t.Helper()
	response, err := through.RoundTrip(httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return string(body)
}

// writing lets a read be answered while a write is under way, by what is not true any more when that is done.
type writing struct {
	t    *testing.T
	memo *memo
	path string
	counting
}

func (w *writing) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Method != http.MethodGet {
		ask(w.t, w.memo, http.MethodGet, w.path)
	}
	return w.counting.RoundTrip(request)
}

func TestMemoKeepsNothingReadDuringAWrite(t *testing.T) {
	const path = "/api/v1/namespaces/a/services/s"
	server := &writing{t: t, path: path}
	m := &memo{next: server, known: map[collection]map[string]answer{}, writes: map[collection]int{}}
	server.memo = m
	ask(t, m, http.MethodPut, path)
	before := server.asked
	ask(t, m, http.MethodGet, path)
	if server.asked != before+1 {
		t.Error("what was read during a write is taken for true after it")
	}
}
