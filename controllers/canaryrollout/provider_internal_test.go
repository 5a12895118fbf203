// SPDX-License-Identifier: Apache-2.0

package canaryrollout

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
)

// slowMapper is the discovery of an API server that does not answer for one kind.
type slowMapper struct {
	meta.RESTMapper

	slow         string
	asked, ended chan struct{}
}

// RESTMapping implements meta.RESTMapper.
func (m slowMapper) RESTMapping(kind schema.GroupKind, _ ...string) (*meta.RESTMapping, error) {
	if kind.Kind == m.slow {
		m.asked <- struct{}{}
		<-m.ended
	}
	return &meta.RESTMapping{}, nil
}

// TestKindsAreAskedForApart: an API server that is slow to tell of one kind keeps nobody from another, nor from one that is
// known.
func TestKindsAreAskedForApart(t *testing.T) {
	mapper := slowMapper{slow: "Slow", asked: make(chan struct{}), ended: make(chan struct{})}
	kinds := newServedKinds(mapper, clock.RealClock{})
	told := make(chan bool)
	go func() {
		served, err := kinds.has(schema.GroupVersionKind{Kind: "Slow"})
		told <- served && err == nil
	}()
	<-mapper.asked
	for range 2 {
		if served, err := kinds.has(schema.GroupVersionKind{Kind: "Other"}); !served || err != nil {
			t.Errorf("the other kind is served: %t, %v", served, err)
		}
	}
	close(mapper.ended)
	if !<-told {
		t.Error("the slow kind is not served")
	}
}
