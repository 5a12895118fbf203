// SPDX-License-Identifier: Apache-2.0

package canaryrollout_test

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// withoutKind is a client of an API server that does not serve a kind.
type withoutKind struct {
	client.Client
	kind schema.GroupVersionKind
}

// RESTMapper implements client.Client.
func (c withoutKind) RESTMapper() meta.RESTMapper {
	return mapperWithout{c.Client.RESTMapper(), c.kind}
}

type mapperWithout struct {
	meta.RESTMapper
	kind schema.GroupVersionKind
}

// RESTMapping implements meta.RESTMapper.
func (m mapperWithout) RESTMapping(kind schema.GroupKind, versions ...string) (*meta.RESTMapping, error) {
	if kind == m.kind.GroupKind() {
		return nil, &meta.NoKindMatchError{GroupKind: kind, SearchedVersions: versions}
	}
	return m.RESTMapper.RESTMapping(kind, versions...)
}
