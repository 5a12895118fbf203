// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

// memo answers a read from what the API server answered to the same read before, for as long as nothing of that
// resource was written in that namespace. It is as true as the API server itself where all writes pass through it, as
// in a namespace in which nobody acts but one scenario. Reads are most of what a scenario asks for, and at rest all.
type memo struct {
	next http.RoundTripper

	mu     sync.Mutex
	known  map[collection]map[string]answer
	writes map[collection]int
}

// collection is all objects of one resource in one namespace, whatever version of the API they are asked for in.
type collection struct{ group, namespace, resource string }

type answer struct {
	response http.Response
	body     []byte
}

// remembering returns a client that asks nothing twice between two writes. It hears of its own writes only. As that of a
// manager of one namespace, it lists nothing of others: what tests leave behind there would make each slower.
func remembering(cluster *testcluster.Cluster, namespace string) (client.WithWatch, error) {
	config := rest.CopyConfig(cluster.Config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return &memo{next: next, known: map[collection]map[string]answer{}, writes: map[collection]int{}}
	})
	c, err := client.NewWithWatch(config, client.Options{
		Scheme: cluster.Client.Scheme(), Mapper: cluster.Client.RESTMapper(),
	})
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			kind, err := itemKind(list, c.Scheme())
			if err != nil {
				return err
			}
			options := (&client.ListOptions{}).ApplyOptions(opts)
			// An unknown kind is the list's to complain of.
			if in, err := apiutil.IsGVKNamespaced(kind, c.RESTMapper()); err == nil && in && options.Namespace == "" {
				opts = append(slices.Clone(opts), client.InNamespace(namespace))
			}
			return c.List(ctx, list, opts...)
		},
	}), nil
}

// RoundTrip implements [http.RoundTripper].
func (m *memo) RoundTrip(request *http.Request) (*http.Response, error) {
	of, namespaced := collectionOf(request.URL.Path)
	switch {
	case !namespaced || request.URL.Query().Has("watch"):
		return m.next.RoundTrip(request)
	case request.Method != http.MethodGet:
		// Twice, for the sake of reads that end before the write does.
		m.forget(of)
		defer m.forget(of)
		return m.next.RoundTrip(request)
	}
	question := request.URL.String() + " " + request.Header.Get("Accept")
	found, writes := m.recall(of, question)
	if found == nil {
		response, err := m.next.RoundTrip(request)
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		if err != nil {
			return nil, fmt.Errorf("reading an answer: %w", err)
		}
		found = &answer{response: *response, body: body}
		m.remember(of, question, *found, writes)
	}
	response := found.response
	response.Request, response.Header = request, response.Header.Clone()
	response.Body = io.NopCloser(bytes.NewReader(found.body))
	return &response, nil
}

// recall returns what is known, nil if nothing is, and how often the collection was written.
func (m *memo) recall(of collection, question string) (*answer, int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if found, ok := m.known[of][question]; ok {
		return &found, m.writes[of]
	}
	return nil, m.writes[of]
}

// remember keeps an answer unless the collection was written since the question was asked.
func (m *memo) remember(of collection, question string, a answer, writes int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	final := a.response.StatusCode == http.StatusOK || a.response.StatusCode == http.StatusNotFound
	if !final || m.writes[of] != writes {
		return
	}
	if m.known[of] == nil {
		m.known[of] = map[string]answer{}
	}
	m.known[of][question] = a
}

func (m *memo) forget(of collection) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes[of]++
	delete(m.known, of)
}

// collectionOf takes a path apart as /api/v1/namespaces/{namespace}/{resource}/... or as
// /apis/{group}/{version}/namespaces/{namespace}/{resource}/... and returns false for one of neither form.
func collectionOf(path string) (collection, bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group := ""
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		group, parts = parts[1], parts[3:]
	}
	if len(parts) < 3 || parts[0] != "namespaces" {
		return collection{}, false
	}
	return collection{group: group, namespace: parts[1], resource: parts[2]}, true
}
