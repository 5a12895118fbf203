// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers"
)

// fieldManager is who the API server says has edited a rollout.
const fieldManager = "kubectl-outrigger"

// session is a connection to the API server.
type session struct {
	ctx       context.Context //nolint:containedctx // a session is one run of one command.
	client    client.WithWatch
	namespace string
}

func (a *app) connect(ctx context.Context) (*session, error) {
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(a.rules, &a.overrides)
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.UserAgent = fieldManager
	config.QPS = -1
	c, err := client.NewWithWatch(config, client.Options{Scheme: controllers.Scheme()})
	if err != nil {
		return nil, fmt.Errorf("connecting to the API server: %w", err)
	}
	return &session{ctx: ctx, client: c, namespace: namespace}, nil
}

// get reads a rollout.
func (s *session) get(name string) (*v1alpha1.CanaryRollout, error) {
	var r v1alpha1.CanaryRollout
	err := s.client.Get(s.ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &r)
	return &r, s.explain(name, err)
}

// explain puts the errors that people meet into their words.
func (s *session) explain(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case meta.IsNoMatchError(err):
		return fmt.Errorf("the cluster has no CanaryRollouts; is Outrigger installed? (%w)", err)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("there is no CanaryRollout %q in namespace %q", name, s.namespace)
	default:
		return err
	}
}

// patch edits a rollout.
func (s *session) patch(r *v1alpha1.CanaryRollout, change any, options ...client.PatchOption) error {
	raw, err := json.Marshal(change)
	if err != nil {
		return fmt.Errorf("encoding the edit: %w", err)
	}
	options = append(options, client.FieldOwner(fieldManager))
	return s.explain(r.Name, s.client.Patch(s.ctx, r, client.RawPatch(types.MergePatchType, raw), options...))
}

// follow calls see with a rollout as it is now and after each change, until see says that it has seen enough or the
// context ends. A deleted rollout is an error.
func (s *session) follow(ctx context.Context, name string, see func(*v1alpha1.CanaryRollout) (bool, error)) error {
	for {
		var list v1alpha1.CanaryRolloutList
		only := []client.ListOption{client.InNamespace(s.namespace), client.MatchingFields{"metadata.name": name}}
		if err := s.client.List(ctx, &list, only...); err != nil {
			return s.explain(name, err)
		}
		if len(list.Items) == 0 {
			return fmt.Errorf("there is no CanaryRollout %q in namespace %q", name, s.namespace)
		}
		if enough, err := see(&list.Items[0]); enough || err != nil {
			return err
		}
		only = append(only, &client.ListOptions{Raw: listOptions(list.ResourceVersion)})
		events, err := s.client.Watch(ctx, &v1alpha1.CanaryRolloutList{}, only...)
		if err != nil {
			return s.explain(name, err)
		}
		enough, err := s.drain(ctx, name, events, see)
		if enough || err != nil {
			return err
		}
	}
}

// drain passes on the events of one watch, until it ends.
func (s *session) drain(
	ctx context.Context, name string, events watch.Interface, see func(*v1alpha1.CanaryRollout) (bool, error),
) (bool, error) {
	defer events.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case event, open := <-events.ResultChan():
			if !open {
				return false, nil // the API server ends every watch after a while
			}
			r, ok := event.Object.(*v1alpha1.CanaryRollout)
			switch {
			case !ok:
				return false, nil
			case event.Type == watch.Deleted:
				return true, fmt.Errorf("CanaryRollout %q has been deleted", name)
			}
			if enough, err := see(r); enough || err != nil {
				return true, err
			}
		}
	}
}

// print writes what a command has to say.
func (a *app) print(value any, text func(io.Writer)) error {
	if a.output == "json" {
		encoder := json.NewEncoder(plainJSON{a.out})
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(value); err != nil {
			return fmt.Errorf("writing JSON: %w", err)
		}
		return nil
	}
	text(plain{a.out})
	return nil
}
