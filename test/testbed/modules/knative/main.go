// SPDX-License-Identifier: Apache-2.0

// Command knative-controller is Knative Serving's controller without its health probes, whose port is fixed and belongs to
// the machine.
package main

import (
	"knative.dev/pkg/injection/sharedmain"
	"knative.dev/pkg/signals"
	"knative.dev/serving/pkg/reconciler/configuration"
	"knative.dev/serving/pkg/reconciler/gc"
	"knative.dev/serving/pkg/reconciler/labeler"
	"knative.dev/serving/pkg/reconciler/revision"
	"knative.dev/serving/pkg/reconciler/route"
	"knative.dev/serving/pkg/reconciler/serverlessservice"
	"knative.dev/serving/pkg/reconciler/service"
)

func main() {
	sharedmain.MainWithContext(
		sharedmain.WithHealthProbesDisabled(signals.NewContext()), "controller",
		configuration.NewController, labeler.NewController, revision.NewController, route.NewController,
		serverlessservice.NewController, service.NewController, gc.NewController,
	)
}
