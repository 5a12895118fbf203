// SPDX-License-Identifier: Apache-2.0

// Package apply is the one place where controllers write objects other than their own status.
//
// An object is written by server-side apply, and only when the live object lacks something of the wanted one, so that a
// cluster at rest sees no writes, also right after the manager has restarted. Two things tell: every wanted field must
// have the wanted value in the live object, which finds edits by others, and the hash annotation must match, which finds
// fields that are no longer wanted.
//
// An object that belongs to somebody else is never written: the error is then a *TakenError.
package apply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// ErrOwnerGone is returned when the live object still belongs to a deleted owner of the same name. The garbage
// collector removes it, and its deletion wakes the controller.
var ErrOwnerGone = errors.New("waiting for the garbage collector to remove the object of a deleted owner")

// TakenError says that an object of the wanted name exists and does not belong to the wanted owner.
type TakenError struct {
	// Kind, Namespace and Name identify the object.
	Kind, Namespace, Name string
	// Holder names who controls it, as kind/name, or is empty if nobody does.
	Holder string
}

// Error implements error.
func (e *TakenError) Error() string {
	holder := "it has no owner"
	if e.Holder != "" {
		holder = "it belongs to " + e.Holder
	}
	return fmt.Sprintf("%s %q exists already and %s; rename one of the two, or delete the %s", e.Kind, e.Name, holder, e.Kind)
}

// Applier writes objects on behalf of one controller.
type Applier struct {
	client  client.Client
	live    client.Reader
	manager client.FieldOwner
}

// New returns an Applier that writes under the given field manager, which must stay the same over releases. Before it
// makes an object that c does not find it asks live, which must not be a cache: a cache that holds only Outrigger's
// objects knows nothing of somebody else's by the same name.
func New(c client.Client, live client.Reader, fieldManager string) *Applier {
	return &Applier{client: c, live: live, manager: client.FieldOwner(fieldManager)}
}

// Apply makes the live object carry every field of desired, a typed apply configuration or an unstructured object, with
// owner as its controller. It reports whether it wrote. A desired object with a resourceVersion is written only if the
// live object still has that version; one whose resourceVersion is Absent is only created.
func (a *Applier) Apply(ctx context.Context, owner client.Object, desired any) (bool, error) {
	want, err := a.complete(owner, desired)
	if err != nil {
		return false, err
	}
	live, err := a.get(ctx, a.client, want)
	if live == nil && err == nil {
		live, err = a.get(ctx, a.live, want)
	}
	if err != nil {
		return false, err
	}
	if live != nil {
		if err := a.checkOwner(live, owner); err != nil {
			return false, err
		}
		if upToDate(want, live) {
			return false, nil
		}
	}
	if want.GetResourceVersion() == Absent {
		want.SetResourceVersion("")
		err = a.client.Create(ctx, want, a.manager)
	} else {
		err = a.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(want), a.manager, client.ForceOwnership)
	}
	if err != nil {
		return false, fmt.Errorf("applying %s %q: %w", want.GetKind(), want.GetName(), err)
	}
	return true, nil
}

// Absent as the resourceVersion of a desired object asks for creation only: if the object exists by then, the error is
// a conflict. It protects an object whose content is derived from its predecessor against a stale read.
const Absent = "absent"

// Delete removes an object if it is still the one that was observed: same UID, same resourceVersion. An object that is
// gone already is no error.
func (a *Applier) Delete(ctx context.Context, seen client.Object) error {
	uid, version := seen.GetUID(), seen.GetResourceVersion()
	err := a.client.Delete(ctx, seen, client.Preconditions{UID: &uid, ResourceVersion: &version})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting %q: %w", seen.GetName(), err)
	}
	return nil
}

// complete returns desired as an unstructured object with owner reference, managed-by label and hash annotation.
func (a *Applier) complete(owner client.Object, desired any) (*unstructured.Unstructured, error) {
	raw, err := json.Marshal(desired)
	if err != nil {
		return nil, fmt.Errorf("encoding desired object: %w", err)
	}
	want := &unstructured.Unstructured{}
	if err := json.Unmarshal(raw, want); err != nil {
		return nil, fmt.Errorf("decoding desired object: %w", err)
	}
	gvk, err := apiutil.GVKForObject(owner, a.client.Scheme())
	if err != nil {
		return nil, fmt.Errorf("naming the owner's kind: %w", err)
	}
	want.SetNamespace(owner.GetNamespace())
	want.SetOwnerReferences([]metav1.OwnerReference{*metav1.NewControllerRef(owner, gvk)})
	want.SetLabels(with(want.GetLabels(), v1alpha1.LabelManagedBy, v1alpha1.ManagedBy))
	version := want.GetResourceVersion()
	want.SetResourceVersion("")
	hash, err := hashOf(want)
	if err != nil {
		return nil, err
	}
	want.SetResourceVersion(version)
	want.SetAnnotations(with(want.GetAnnotations(), v1alpha1.AnnotationAppliedHash, hash))
	return want, nil
}

// get reads the live object, typed where the scheme knows the kind, so that it comes from the same informer as the
// controllers' own reads. It returns nil if there is none.
func (a *Applier) get(
	ctx context.Context, from client.Reader, want *unstructured.Unstructured,
) (*unstructured.Unstructured, error) {
	gvk := want.GroupVersionKind()
	var into client.Object = &unstructured.Unstructured{}
	if a.client.Scheme().Recognizes(gvk) {
		typed, err := a.client.Scheme().New(gvk)
		if err != nil {
			return nil, fmt.Errorf("making a %s: %w", gvk.Kind, err)
		}
		into = typed.(client.Object) //nolint:forcetypeassert // every kind of the scheme that has a name is an object.
	} else {
		into.GetObjectKind().SetGroupVersionKind(gvk)
	}
	err := from.Get(ctx, client.ObjectKeyFromObject(want), into)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s %q: %w", gvk.Kind, want.GetName(), err)
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(into)
	if err != nil {
		return nil, fmt.Errorf("converting %s %q: %w", gvk.Kind, want.GetName(), err)
	}
	live := &unstructured.Unstructured{Object: content}
	live.SetGroupVersionKind(gvk)
	return live, nil
}

func (a *Applier) checkOwner(live *unstructured.Unstructured, owner client.Object) error {
	gvk, err := apiutil.GVKForObject(owner, a.client.Scheme())
	if err != nil {
		return fmt.Errorf("naming the owner's kind: %w", err)
	}
	ref := metav1.GetControllerOf(live)
	switch {
	case ref == nil:
		return &TakenError{Kind: live.GetKind(), Namespace: live.GetNamespace(), Name: live.GetName()}
	case ref.UID == owner.GetUID():
		return nil
	case ref.Name == owner.GetName() && ref.Kind == gvk.Kind:
		return ErrOwnerGone
	default:
		return &TakenError{
			Kind: live.GetKind(), Namespace: live.GetNamespace(), Name: live.GetName(),
			Holder: ref.Kind + "/" + ref.Name,
		}
	}
}

func upToDate(want, live *unstructured.Unstructured) bool {
	const hash = v1alpha1.AnnotationAppliedHash
	if want.GetAnnotations()[hash] != live.GetAnnotations()[hash] {
		return false
	}
	compare := want.DeepCopy()
	compare.SetResourceVersion("")
	unstructured.RemoveNestedField(compare.Object, "metadata", "resourceVersion")
	return Contains(live.Object, compare.Object)
}

func hashOf(want *unstructured.Unstructured) (string, error) {
	raw, err := json.Marshal(want.Object) // map keys come out sorted
	if err != nil {
		return "", fmt.Errorf("hashing desired object: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8]), nil
}

func with(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}
