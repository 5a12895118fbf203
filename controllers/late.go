// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// kindsInterval is how often a controller looks for kinds that are not installed yet.
const kindsInterval = 5 * time.Second

// lateController is a controller that can be registered only when others' kinds are served. Until then the rest of the
// manager works: Outrigger may be installed before KServe and Istio, and needs no restart when they come.
type lateController struct {
	name  string
	needs []schema.GroupVersionKind
	setup func(ctrl.Manager) error
}

// addTo registers the controller now if it can be, and otherwise has the manager do it when its kinds are there.
func (l lateController) addTo(mgr ctrl.Manager) error {
	missing, err := l.missing(mgr.GetRESTMapper())
	if err != nil {
		return err
	}
	if missing == nil {
		return l.start(mgr)
	}
	mgr.GetLogger().Info("Waiting for a kind to be installed", "controller", l.name, "missing", missing.String())
	// Leader election guards the controller itself.
	return mgr.Add(everywhere(func(ctx context.Context) error {
		return wait.PollUntilContextCancel(ctx, kindsInterval, false, func(context.Context) (bool, error) {
			if missing, err := l.missing(mgr.GetRESTMapper()); err != nil || missing != nil {
				return false, nil //nolint:nilerr // an API server that is away now is asked again.
			}
			mgr.GetLogger().Info("Starting a controller whose kinds have been installed", "controller", l.name)
			return true, l.start(mgr)
		})
	}))
}

func (l lateController) start(mgr ctrl.Manager) error {
	if err := l.setup(mgr); err != nil {
		return fmt.Errorf("setting up controller %s: %w", l.name, err)
	}
	return nil
}

// missing returns the first needed kind that is not served, or nil.
func (l lateController) missing(mapper meta.RESTMapper) (*schema.GroupVersionKind, error) {
	for _, kind := range l.needs {
		_, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if meta.IsNoMatchError(err) {
			return &kind, nil
		}
		if err != nil {
			return nil, fmt.Errorf("looking for kind %s: %w", kind.Kind, err)
		}
	}
	return nil, nil
}

// everywhere is a Runnable that runs on every replica, leader or not.
type everywhere manager.RunnableFunc

// Start implements manager.Runnable.
func (f everywhere) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (everywhere) NeedLeaderElection() bool { return false }
