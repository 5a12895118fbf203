// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// errKilled stands for the end of the process: the reconciler that sees it is thrown away.
var errKilled = errors.New("killed")

// crash counts writes and kills the reconciler at one of them; at 0 it only counts.
type crash struct {
	at       int  // the write to be killed at
	done     bool // whether that write still reaches the API server
	writes   int
	firsts   []bool // of each write, whether it was the first of its round
	begun    bool   // whether the round has written yet
	happened bool
	dead     bool
}

func (k *crash) client(w *World) client.Client {
	k.dead = false // a new client is a new process
	write := func(do func() error) error {
		if k.dead {
			return errKilled
		}
		k.writes++
		k.firsts, k.begun = append(k.firsts, !k.begun), true
		if k.writes != k.at {
			return do()
		}
		k.happened, k.dead = true, true
		if k.done {
			return errors.Join(errKilled, do())
		}
		return errKilled
	}
	return intercept(w.Client, write, interceptor.Funcs{})
}

// intercept passes every write through write.
func intercept(c client.WithWatch, write func(func() error) error, funcs interceptor.Funcs) client.Client {
	funcs.Create = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
		if options := (&client.CreateOptions{}).ApplyOptions(opts); len(options.DryRun) > 0 {
			return c.Create(ctx, o, opts...) // changes nothing
		}
		return write(func() error { return c.Create(ctx, o, opts...) })
	}
	funcs.Update = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.UpdateOption) error {
		return write(func() error { return c.Update(ctx, o, opts...) })
	}
	funcs.Patch = func(
		ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption,
	) error {
		return write(func() error { return c.Patch(ctx, o, p, opts...) })
	}
	funcs.Apply = func(
		ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption,
	) error {
		return write(func() error { return c.Apply(ctx, o, opts...) })
	}
	funcs.Delete = func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
		return write(func() error { return c.Delete(ctx, o, opts...) })
	}
	funcs.SubResourcePatch = func(
		ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption,
	) error {
		return write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
	}
	funcs.SubResourceUpdate = func(
		ctx context.Context, c client.Client, sub string, o client.Object, opts ...client.SubResourceUpdateOption,
	) error {
		return write(func() error { return c.SubResource(sub).Update(ctx, o, opts...) })
	}
	return interceptor.NewClient(c, funcs)
}

// stale serves reads from a picture of the namespace that is some rounds old, as a cache does whose watch is slow.
type stale struct {
	lag   int
	kinds []client.ObjectList
	past  []map[schema.GroupVersionKind][]client.Object
}

// remember takes a picture of the namespace. It is called before every round.
func (s *stale) remember(ctx context.Context, w *World) error {
	picture := map[schema.GroupVersionKind][]client.Object{}
	for _, kind := range s.kinds {
		objects, err := listOf(ctx, w.Client, w.Namespace, kind)
		if err != nil {
			return err
		}
		gvk, err := itemKind(kind, w.Client.Scheme())
		if err != nil {
			return err
		}
		picture[gvk] = objects
	}
	s.past = append(s.past, picture)
	return nil
}

func (s *stale) client(w *World) client.Client {
	return intercept(w.Client, func(do func() error) error { return do() }, interceptor.Funcs{
		Get: func(
			ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption,
		) error {
			gvk, err := apiutil.GVKForObject(into, c.Scheme())
			if err != nil {
				return err
			}
			objects, known := s.now()[gvk]
			if !known {
				return c.Get(ctx, key, into, opts...)
			}
			for _, o := range objects {
				if client.ObjectKeyFromObject(o) == key {
					return copyInto(o, into)
				}
			}
			return apierrors.NewNotFound(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, key.Name)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			gvk, err := itemKind(list, c.Scheme())
			if err != nil {
				return err
			}
			objects, known := s.now()[gvk]
			if !known {
				return c.List(ctx, list, opts...)
			}
			return listInto(objects, list, opts...)
		},
	})
}

// now is the picture that reads are served from.
func (s *stale) now() map[schema.GroupVersionKind][]client.Object {
	return s.past[max(0, len(s.past)-1-s.lag)]
}

func itemKind(list client.ObjectList, scheme *runtime.Scheme) (schema.GroupVersionKind, error) {
	gvk, err := apiutil.GVKForObject(list, scheme)
	if err != nil {
		return gvk, fmt.Errorf("naming the kind of %T: %w", list, err)
	}
	gvk.Kind = gvk.Kind[:len(gvk.Kind)-len("List")]
	return gvk, nil
}

// copyInto converts by way of unstructured content, since a reader may ask for another Go type of the same kind.
func copyInto(from, into client.Object) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(from)
	if err != nil {
		return err
	}
	if u, ok := into.(runtime.Unstructured); ok {
		kind := into.GetObjectKind().GroupVersionKind()
		u.SetUnstructuredContent(runtime.DeepCopyJSON(content))
		into.GetObjectKind().SetGroupVersionKind(kind)
		return nil
	}
	return runtime.DefaultUnstructuredConverter.FromUnstructured(content, into)
}

func listInto(objects []client.Object, list client.ObjectList, opts ...client.ListOption) error {
	options := (&client.ListOptions{}).ApplyOptions(opts)
	var picked []runtime.Object
	for _, o := range objects {
		if options.LabelSelector != nil && !options.LabelSelector.Matches(labelSet(o)) {
			continue
		}
		item, err := newItem(list)
		if err != nil {
			return err
		}
		if err := copyInto(o, item); err != nil {
			return err
		}
		picked = append(picked, item)
	}
	return meta.SetList(list, picked)
}

func labelSet(o client.Object) labels.Set { return o.GetLabels() }

// newItem makes an empty item of a list's type.
func newItem(list client.ObjectList) (client.Object, error) {
	items, err := meta.GetItemsPtr(list)
	if err != nil {
		return nil, fmt.Errorf("finding the items of %T: %w", list, err)
	}
	item, ok := reflect.TypeAssert[client.Object](reflect.New(reflect.TypeOf(items).Elem().Elem()))
	if !ok {
		return nil, fmt.Errorf("items of %T have no metadata", list)
	}
	return item, nil
}
