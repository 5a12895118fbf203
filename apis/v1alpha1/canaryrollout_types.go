// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of conditions and events that only CanaryRollouts have.
const (
	// ReasonRouteControlled says that the route to adopt is kept by another controller, which would put every weight
	// back.
	ReasonRouteControlled = "RouteControlled"
	// ReasonRouteAmbiguous says that it cannot be told which rule or destination of a route is meant, or that a third
	// destination takes a share.
	ReasonRouteAmbiguous = "RouteAmbiguous"
	// ReasonUnsupportedDeploymentMode says that a side runs in a deployment mode of KServe that cannot be routed.
	ReasonUnsupportedDeploymentMode = "UnsupportedDeploymentMode"
	// ReasonUnsupportedVariant says that a side is a variant of an InferenceService whose variants have one entry.
	ReasonUnsupportedVariant = "UnsupportedVariant"
	// ReasonRouteNotWritten says that the route could not be written yet and that it is tried again.
	ReasonRouteNotWritten = "RouteNotWritten"
	// ReasonRouteNotBound says that the rollout's VirtualService is in place but that no VirtualService with a host
	// delegates to it.
	ReasonRouteNotBound = "RouteNotBound"
	// ReasonUnsupportedByProvider says that the kind of route that was chosen cannot say what is asked.
	ReasonUnsupportedByProvider = "UnsupportedByProvider"
	// ReasonProviderNotInstalled says that the API server does not serve the kind of route that is asked.
	ReasonProviderNotInstalled = "ProviderNotInstalled"
	// ReasonWaitingForGateway says that the route is written and that those who obey it have not taken it up yet.
	ReasonWaitingForGateway = "WaitingForGateway"
	// ReasonRouteNotAccepted says that the route is written and that one of those who obey it refuses it; the message
	// holds its words.
	ReasonRouteNotAccepted = "RouteNotAccepted"
	// ReasonDriftRepaired says that somebody else changed the route and that it was put right; the message names the
	// field manager.
	ReasonDriftRepaired = "DriftRepaired"
	// ReasonDriftHeld says that somebody else changed the route and that it is left so for now; the message names the
	// field manager.
	ReasonDriftHeld = "DriftHeld"
	// ReasonDryRun says that nothing is written because dryRun is set.
	ReasonDryRun = "DryRun"
	// ReasonInvalidColour says that a colour cannot be told in the language of routes.
	ReasonInvalidColour = "InvalidColour"
	// ReasonModelNamesDiffer says that the two sides serve models of different names, so that what is asked of one is not
	// found on the other.
	ReasonModelNamesDiffer = "ModelNamesDiffer"
	// ReasonCanaryScalesToZero says that the canary gets less than is asked because Knative may take its last pod away.
	ReasonCanaryScalesToZero = "CanaryScalesToZero"
	// ReasonOneRevision says that the InferenceService has one revision only, and nothing to share.
	ReasonOneRevision = "OneRevision"
	// ReasonWaitingForRevision says that the InferenceService was edited and that Knative has made no revision of it yet.
	ReasonWaitingForRevision = "WaitingForRevision"
	// ReasonWeightsChanged is that of the event that tells new weights.
	ReasonWeightsChanged = "WeightsChanged"
)

// FinalizerRoute is on a CanaryRollout whose deletion is more than the deletion of what it owns.
const FinalizerRoute = GroupName + "/route"

// AnnotationFoundWeights is on a CanaryRollout that adopts a route: the weights that the route had before.
const AnnotationFoundWeights = GroupName + "/found-weights"

// CanaryRolloutSpec says how traffic is shared between two InferenceServices.
//
// +kubebuilder:validation:XValidation:rule="has(self.routing.provider) && self.routing.provider == 'Knative' || self.stable.inferenceService != self.canary.inferenceService || has(self.stable.variant) != has(self.canary.variant) || has(self.stable.variant) && self.stable.variant != self.canary.variant",message="stable and canary must be two different InferenceServices, or two variants of one: set canary.variant to the predictor.name of an entry of spec.canary"
// +kubebuilder:validation:XValidation:rule="!has(self.routing.provider) || self.routing.provider != 'Knative' || (self.stable.inferenceService == self.canary.inferenceService && !has(self.stable.variant) && !has(self.canary.variant))",message="provider Knative shares traffic between two revisions of one InferenceService: name it in stable and in canary, without variants"
// +kubebuilder:validation:XValidation:rule="!has(self.routing.provider) || self.routing.provider != 'Knative' || (!has(self.colours) && !has(self.stickiness) && !has(self.shadow))",message="provider Knative knows nothing but one percentage: remove colours, stickiness and shadow, or use provider VirtualService with two InferenceServices"
// +kubebuilder:validation:XValidation:rule="!has(self.colours) || self.routing.mode != 'Adopt'",message="colours need a route of Outrigger's own; use mode Owned or Delegate"
// +kubebuilder:validation:XValidation:rule="!has(self.stickiness) || self.routing.mode != 'Adopt'",message="stickiness needs a route of Outrigger's own; use mode Owned or Delegate"
// +kubebuilder:validation:XValidation:rule="!has(self.shadow) || self.routing.mode != 'Adopt'",message="shadow needs a route of Outrigger's own; use mode Owned or Delegate"
// +kubebuilder:validation:XValidation:rule="!has(self.strategy) || self.canaryPercent == 0",message="canaryPercent and strategy exclude each other: remove one of the two"
// +kubebuilder:validation:XValidation:rule="!has(self.suspend) || !self.suspend || has(self.strategy)",message="suspend stops the steps of a strategy; without one, traffic moves only when canaryPercent is edited"
// +kubebuilder:validation:XValidation:rule="!has(self.analysis) || has(self.strategy)",message="analysis belongs to the steps of a strategy; add strategy"
// +kubebuilder:validation:XValidation:rule="has(self.analysis) || !has(self.strategy) || !self.strategy.steps.exists(s, has(s.hold) && (has(s.hold.minSamples) || has(s.hold.maxDuration)))",message="minSamples and maxDuration wait for an analysis; add analysis, or use duration alone"
// +kubebuilder:validation:XValidation:rule="!has(self.analysis) || !has(self.strategy) || !self.strategy.steps.exists(s, has(s.hold) && has(s.hold.minSamples)) || self.analysis.metrics.exists(m, (!has(m.dryRun) || !m.dryRun) && (has(m.share) || has(m.histogram) || has(m.builtin) && m.builtin.matches('error-rate$|-p[0-9]+$')))",message="hold.minSamples counts requests, and no metric does that is no dryRun: a value has none; add a share, a histogram or a builtin of requests such as error-rate, or use hold.duration"
// +kubebuilder:validation:XValidation:rule="!has(self.dryRun) || !self.dryRun || !has(self.strategy)",message="dryRun is for an edit of canaryPercent, colours or routing; a rollout with a strategy must be free to turn its canary back"
type CanaryRolloutSpec struct {
	// stable is the side that has the traffic before the rollout.
	// +required
	Stable RolloutSide `json:"stable"`

	// canary is the side that the rollout moves traffic to.
	// +required
	Canary RolloutSide `json:"canary"`

	// canaryPercent is the share of requests that the canary gets, 0 to 100. Editing it moves traffic at once. While
	// the canary is not ready it gets none, whatever is asked.
	// +optional
	// +kubebuilder:default=0
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	CanaryPercent int32 `json:"canaryPercent"`

	// modelNames is Same or Any. The name of a model is in the path or the body of each request, so a canary that serves
	// its model by another name than stable answers with an error and gets no traffic. The names are read from the
	// arguments of the pods; pods that do not tell are not compared. Any compares none: choose it when a model server knows
	// more names than its arguments tell.
	// +optional
	// +kubebuilder:default=Same
	ModelNames ModelNames `json:"modelNames,omitempty"`

	// strategy moves traffic to the canary step by step, instead of by edits of canaryPercent.
	// +optional
	Strategy *RolloutStrategy `json:"strategy,omitempty"`

	// analysis proves by metrics that the canary is not worse than is tolerated, in every step of a strategy.
	// +optional
	Analysis *RolloutAnalysis `json:"analysis,omitempty"`

	// capacity bounds the canary's share by what its ready pods carry. When unset, any ready pod carries everything.
	// +optional
	Capacity *RolloutCapacity `json:"capacity,omitempty"`

	// warmup has every ready pod of the canary answer requests of its own before the canary gets more traffic. When
	// unset, a ready pod is taken for warm.
	// +optional
	Warmup *RolloutWarmup `json:"warmup,omitempty"`

	// suspend keeps a rollout with a strategy where it is: no step is taken until it is false again. A canary that fails
	// is turned back all the same.
	// +optional
	Suspend bool `json:"suspend,omitempty"`

	// dryRun writes nothing but status.plan: the change of the route that would be made. What is routed stays routed,
	// whatever becomes of the two sides, so it is for looking before a change and not for keeping.
	// +optional
	DryRun bool `json:"dryRun,omitempty"`

	// colours send some requests to one side whatever the weights, the first that matches decides. They are not counted
	// into canaryPercent. Not in mode Adopt.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Colours []Colour `json:"colours,omitempty"`

	// stickiness keeps each session on one side. The canary's share of sessions is its weight, whatever weights came
	// before: more weight only adds sessions to those that it has. Not in mode Adopt.
	// +optional
	Stickiness *RolloutStickiness `json:"stickiness,omitempty"`

	// shadow gives the canary copies of requests, whose answers nobody sees, until it gets a share of its own. Not in mode
	// Adopt.
	// +optional
	Shadow *RolloutShadow `json:"shadow,omitempty"`

	// routing says through which route the traffic flows.
	// +optional
	// +kubebuilder:default={mode: Owned}
	Routing RolloutRouting `json:"routing,omitzero"`
}

// ModelNames says whether the sides must serve their models by the same name.
//
// +enum
// +kubebuilder:validation:Enum=Same;Any
type ModelNames string

// Values of ModelNames.
const (
	// ModelNamesSame gives no traffic to a canary whose model has another name.
	ModelNamesSame ModelNames = "Same"
	// ModelNamesAny compares no names.
	ModelNamesAny ModelNames = "Any"
)

// RolloutStickiness says how a session is known. Requests that are not known are shared like all others.
//
// +kubebuilder:validation:XValidation:rule="has(self.cookie) != has(self.header)",message="give a cookie or a header, one of the two"
type RolloutStickiness struct {
	// cookie has the route give each session a cookie. Needs provider VirtualService.
	// +optional
	Cookie *SessionCookie `json:"cookie,omitempty"`

	// header is one that clients send with each request of a session.
	// +optional
	Header *SessionHeader `json:"header,omitempty"`
}

// SessionCookie is a cookie that the route sets in answers, and by which it knows the session later.
type SessionCookie struct {
	// name is the cookie's name. It must be used for nothing else.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[-A-Za-z0-9_.]+$`
	Name string `json:"name"`

	// ttl is how long a session lasts from its first answer, 1s to 720h; after it the session is drawn anew.
	// +optional
	// +kubebuilder:default="1h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1s') && duration(self) <= duration('720h')",message="ttl must be between 1s and 720h"
	TTL metav1.Duration `json:"ttl,omitempty"`
}

// SessionHeader is a header with an identifier of the session that ends in two random hexadecimal digits, such as a
// UUID. They decide the side.
//
// +kubebuilder:validation:XValidation:rule="!(self.name in ['cookie', 'uri', 'scheme', 'method', 'authority', 'host'])",message="name must be a header of its own: use cookie for cookies; uri, scheme, method, authority and host are none"
type SessionHeader struct {
	// name is the header's name in lower case.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
}

// RolloutShadow bounds the copies that the canary gets.
type RolloutShadow struct {
	// percent is the share of requests that are copied, 1 to 100. Fewer are when the canary has fewer ready pods than this
	// share of stable's, so that none of them gets more than one of stable's does; status.shadowPercent tells.
	// +optional
	// +kubebuilder:default=10
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	Percent int32 `json:"percent,omitempty"`
}

// Colour sends requests that carry a mark to one side.
type Colour struct {
	// name tells the colour from others, and names its route: colour-<name>.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`

	// to is Stable or Canary: the side that gets the requests.
	// +required
	To SideName `json:"to"`

	// match says which requests: those that fit any entry of any.
	// +required
	Match ColourMatch `json:"match"`

	// fallback says what becomes of the requests while the side has no ready pod. Split shares them like all others.
	// None sends them there all the same, so that they fail rather than being answered by the other side.
	// +optional
	// +kubebuilder:default=Split
	Fallback ColourFallback `json:"fallback,omitempty"`
}

// SideName names one of the two sides.
//
// +enum
// +kubebuilder:validation:Enum=Stable;Canary
type SideName string

// Names of the sides.
const (
	// SideStable is the side that has the traffic before the rollout.
	SideStable SideName = "Stable"
	// SideCanary is the side that the rollout moves traffic to.
	SideCanary SideName = "Canary"
)

// ColourFallback says what becomes of coloured requests whose side cannot take them.
//
// +enum
// +kubebuilder:validation:Enum=Split;None
type ColourFallback string

// Fallbacks of colours.
const (
	// FallbackSplit shares the requests like all others.
	FallbackSplit ColourFallback = "Split"
	// FallbackNone lets the requests fail.
	FallbackNone ColourFallback = "None"
)

// ColourMatch says which requests carry a colour.
type ColourMatch struct {
	// any lists the ways to carry it; one is enough.
	// +required
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	Any []ColourMark `json:"any"`
}

// ColourMark is one way for a request to carry a colour. If both a header and a cookie are given, it must have both.
//
// +kubebuilder:validation:XValidation:rule="has(self.header) || has(self.cookie)",message="give a header or a cookie"
type ColourMark struct {
	// header is a header that the request must have.
	// +optional
	Header *HeaderMark `json:"header,omitempty"`

	// cookie is a cookie that the request must have.
	// +optional
	Cookie *CookieMark `json:"cookie,omitempty"`
}

// HeaderMark is a header by which a request is known.
//
// +kubebuilder:validation:XValidation:rule="(has(self.exact) ? 1 : 0) + (has(self.prefix) ? 1 : 0) + (has(self.regex) ? 1 : 0) == 1",message="give exactly one of exact, prefix and regex"
// +kubebuilder:validation:XValidation:rule="!(self.name in ['cookie', 'uri', 'scheme', 'method', 'authority', 'host'])",message="name must be a header of its own: use cookie for cookies; uri, scheme, method, authority and host are none"
type HeaderMark struct {
	// name is the header's name in lower case.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`

	// exact is the whole value.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Exact string `json:"exact,omitempty"`

	// prefix is what the value begins with.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Prefix string `json:"prefix,omitempty"`

	// regex is a regular expression in RE2 syntax that the whole value must fit.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	Regex string `json:"regex,omitempty"`
}

// CookieMark is a cookie by which a request is known. Cookies whose name or value only contains what is asked are not
// taken for it.
type CookieMark struct {
	// name is the cookie's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:Pattern=`^[-A-Za-z0-9_.]+$`
	Name string `json:"name"`

	// value is the cookie's whole value.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[-A-Za-z0-9_.:/+=~%!]+$`
	Value string `json:"value"`
}

// RolloutSide names one of the two sides of a rollout.
type RolloutSide struct {
	// inferenceService is the name of an InferenceService of the rollout's namespace.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	InferenceService string `json:"inferenceService"`

	// variant is the predictor.name of an entry of the InferenceService's spec.canary, by which KServe runs a second
	// predictor beside the first without sending it requests. When unset, the side is the predictor itself. One that has
	// become the predictor, as a promotion makes it, is still found by this name. Not with a transformer, through
	// which the requests for all variants go.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Variant string `json:"variant,omitempty"`
}

// RolloutRouting says through which route the traffic flows.
//
// +kubebuilder:validation:XValidation:rule="self.mode == 'Adopt' ? has(self.virtualServiceRef) != has(self.httpRouteRef) : !has(self.virtualServiceRef) && !has(self.httpRouteRef)",message="virtualServiceRef or httpRouteRef, one of the two, is needed in mode Adopt and has no meaning in the other modes"
// +kubebuilder:validation:XValidation:rule="!has(self.provider) || self.provider != 'HTTPRoute' || (self.mode != 'Delegate' && !has(self.virtualServiceRef))",message="provider HTTPRoute has neither mode Delegate nor a virtualServiceRef; use provider VirtualService"
// +kubebuilder:validation:XValidation:rule="!has(self.provider) || self.provider != 'VirtualService' || !has(self.httpRouteRef)",message="provider VirtualService has no httpRouteRef; use provider HTTPRoute"
// +kubebuilder:validation:XValidation:rule="self.mode == 'Owned' || (!has(self.hosts) && !has(self.gateways))",message="hosts and gateways belong to the adopted route in mode Adopt, and to the one that delegates in mode Delegate; remove them here"
// +kubebuilder:validation:XValidation:rule="!has(self.provider) || self.provider != 'Knative' || (self.mode == 'Owned' && !has(self.hosts) && !has(self.gateways))",message="provider Knative writes a field of the InferenceService, whose clients call it as ever: remove mode, hosts, gateways and references"
// +kubebuilder:validation:XValidation:rule="!has(self.onDelete) || self.onDelete != 'Restore' || self.mode == 'Adopt' || has(self.provider) && self.provider == 'Knative'",message="onDelete Restore needs mode Adopt or provider Knative: only what was there before can be restored"
// +kubebuilder:validation:XValidation:rule="!has(self.gateways) || has(self.hosts) || self.gateways.all(g, g == 'mesh')",message="gateways other than mesh need hosts"
type RolloutRouting struct {
	// provider is the kind of route: VirtualService is Istio's, HTTPRoute the Gateway API's. Knative makes no route: it
	// shares the traffic of one InferenceService in KServe's Knative mode, which stable and canary both name, between the
	// revision that was rolled out last and the newest, by the InferenceService's spec.predictor.canaryTrafficPercent; it
	// has neither colours nor stickiness nor shadow. Auto, which is the default,
	// takes the one that mode and references name; else keeps the one that the rollout has; else takes HTTPRoute if
	// the API server serves no VirtualServices, or if KServe makes HTTPRoutes for the stable InferenceService; else
	// VirtualService. status.provider tells which it is.
	// +optional
	// +kubebuilder:default=Auto
	Provider RoutingProvider `json:"provider,omitempty"`

	// mode is Owned, Delegate or Adopt. Owned has Outrigger make a route and, when hosts is unset, a Service, both named
	// like the rollout. Delegate has it make a VirtualService without hosts, to which a route of a VirtualService of
	// yours delegates by this name; yours is only read. Adopt has it edit the weights of one rule of a VirtualService or
	// HTTPRoute of yours, and nothing else in it.
	// +optional
	// +kubebuilder:default=Owned
	Mode RoutingMode `json:"mode,omitempty"`

	// hosts are the host names that clients call, in mode Owned. When unset, they call the Service that Outrigger makes:
	// <rollout>.<namespace>.svc.cluster.local, or what the manager was told to be the cluster's domain.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	Hosts []string `json:"hosts,omitempty"`

	// gateways are the Gateways whose traffic is routed, in mode Owned: names, namespace/name, or mesh for callers inside
	// the mesh. When unset, mesh. They are Istio's own for VirtualServices and the Gateway API's for HTTPRoutes. With
	// HTTPRoutes, callers inside the mesh reach Services only, so each of hosts must be one if mesh is among gateways.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=317
	Gateways []string `json:"gateways,omitempty"`

	// virtualServiceRef names the route to edit, in mode Adopt.
	// +optional
	VirtualServiceRef *VirtualServiceReference `json:"virtualServiceRef,omitempty"`

	// httpRouteRef names the rule to edit, in mode Adopt.
	// +optional
	HTTPRouteRef *HTTPRouteReference `json:"httpRouteRef,omitempty"`

	// driftPolicy says what becomes of changes that somebody else makes to the weights of an adopted route, or to
	// anything in a route of Outrigger's own.
	// +optional
	// +kubebuilder:default={action: Repair}
	DriftPolicy DriftPolicy `json:"driftPolicy,omitzero"`

	// onDelete says what becomes of the route when the rollout is deleted. Stable gives stable all traffic of an
	// adopted route; a route of Outrigger's own goes with the rollout. Keep leaves the route with its last weights; one
	// of Outrigger's own then has no owner any more, and a later rollout of the same name takes it over. Restore gives an
	// adopted route the weights that it had before. With provider Knative, Stable has the revision that KServe takes for
	// rolled out get everything, and Restore gives canaryTrafficPercent the value that it had before. No policy moves traffic to a side that has no ready pod while the
	// other has.
	// +optional
	// +kubebuilder:default=Stable
	OnDelete OnDelete `json:"onDelete,omitempty"`
}

// DriftPolicy says what becomes of foreign changes of a route.
type DriftPolicy struct {
	// action is Repair, which puts the route right at once, or Hold, which leaves it as it is until the spec is edited or
	// other weights are due.
	// +optional
	// +kubebuilder:default=Repair
	Action DriftAction `json:"action,omitempty"`

	// maxRepairsPerMinute bounds the repairs within a minute, 1 to 60. Once that many were made, the route is held for
	// ten minutes after the last, so that two controllers never chase each other.
	// +optional
	// +kubebuilder:default=6
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=60
	MaxRepairsPerMinute int32 `json:"maxRepairsPerMinute,omitempty"`
}

// DriftAction says what to do about a foreign change.
//
// +enum
// +kubebuilder:validation:Enum=Repair;Hold
type DriftAction string

// Actions on drift.
const (
	// DriftRepair puts the route right at once.
	DriftRepair DriftAction = "Repair"
	// DriftHold leaves the route as it is.
	DriftHold DriftAction = "Hold"
)

// OnDelete says what becomes of a route when its rollout is deleted.
//
// +enum
// +kubebuilder:validation:Enum=Stable;Keep;Restore
type OnDelete string

// Policies of deletion.
const (
	// OnDeleteStable gives stable all traffic of an adopted route, and removes a route of Outrigger's own.
	OnDeleteStable OnDelete = "Stable"
	// OnDeleteKeep leaves the route with its last weights.
	OnDeleteKeep OnDelete = "Keep"
	// OnDeleteRestore gives an adopted route the weights that it had before.
	OnDeleteRestore OnDelete = "Restore"
)

// RoutingProvider names a kind of route.
//
// +enum
// +kubebuilder:validation:Enum=Auto;VirtualService;HTTPRoute;Knative
type RoutingProvider string

// Providers of routing.
const (
	// ProviderAuto takes the kind that the cluster and the InferenceService use.
	ProviderAuto RoutingProvider = "Auto"
	// ProviderVirtualService takes Istio's VirtualService.
	ProviderVirtualService RoutingProvider = "VirtualService"
	// ProviderHTTPRoute takes the Gateway API's HTTPRoute.
	ProviderHTTPRoute RoutingProvider = "HTTPRoute"
	// ProviderKnative takes the percentage that KServe hands to Knative.
	ProviderKnative RoutingProvider = "Knative"
)

// RoutingMode says whose the route is.
//
// +enum
// +kubebuilder:validation:Enum=Owned;Delegate;Adopt
type RoutingMode string

// Modes of routing.
const (
	// RoutingOwned has Outrigger make the route.
	RoutingOwned RoutingMode = "Owned"
	// RoutingDelegate has Outrigger make the route that a user's VirtualService delegates to.
	RoutingDelegate RoutingMode = "Delegate"
	// RoutingAdopt has Outrigger edit the weights of a user's route.
	RoutingAdopt RoutingMode = "Adopt"
)

// VirtualServiceReference names one HTTP route of a VirtualService of the same namespace.
type VirtualServiceReference struct {
	// name is the name of the VirtualService.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// route is the name of the HTTP route in it: spec.http[].name. The route must have one destination for each side.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Route string `json:"route"`
}

// HTTPRouteReference names one rule of an HTTPRoute of the same namespace.
type HTTPRouteReference struct {
	// name is the name of the HTTPRoute.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`

	// rule is the name of the rule in it: spec.rules[].name. The rule must have one backendRef for each side.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Rule string `json:"rule"`
}

// CanaryRolloutStatus is what a CanaryRollout has come to.
type CanaryRolloutStatus struct {
	// conditions are Ready, RouteApplied and Stalled; with a strategy Progressing, with an analysis AnalysisHealthy, with a
	// warm-up Warmed, and after a foreign change of the route DriftDetected.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the generation of the spec that this status speaks of.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// provider is the kind of route that carries the weights, VirtualService or HTTPRoute, or Knative where none is needed;
	// empty while there is none.
	// +optional
	Provider RoutingProvider `json:"provider,omitempty"`

	// host is the first host name at which clients find the route, empty while there is none.
	// +optional
	Host string `json:"host,omitempty"`

	// revisions are the two that share the traffic, with provider Knative.
	// +optional
	Revisions *RolloutRevisions `json:"revisions,omitempty"`

	// colours are the names of the colours in force. One whose side has no ready pod is not, unless its fallback is
	// None.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	Colours []string `json:"colours,omitempty"`

	// weights are the shares of the two sides.
	// +optional
	Weights RolloutWeights `json:"weights,omitzero"`

	// maxSafePercent is the most that the canary can get now, by its capacity and by how much of it is warm; unset without
	// capacity and warmup.
	// +optional
	MaxSafePercent *int32 `json:"maxSafePercent,omitempty"`

	// neededPods is how many ready pods are taken for enough for all traffic; unset without capacity.
	// +optional
	NeededPods int32 `json:"neededPods,omitempty"`

	// plan is the change of the route that would be made, as a unified diff, while dryRun is set.
	// +optional
	// +kubebuilder:validation:MaxLength=16384
	Plan string `json:"plan,omitempty"`

	// shadowPercent is the share of requests of which the canary gets a copy now, 0 to 100.
	// +optional
	ShadowPercent int32 `json:"shadowPercent,omitempty"`

	// drift tells of foreign changes of the route, as long as they matter.
	// +optional
	Drift *RolloutDrift `json:"drift,omitempty"`

	RolloutProgress `json:",inline"`
}

// RolloutRevisions are the revisions of an InferenceService that are the two sides.
type RolloutRevisions struct {
	// stable is the one that had all traffic before canary was made. It stays that, also when canary has been given
	// everything.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Stable string `json:"stable,omitempty"`

	// canary is the newest.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Canary string `json:"canary,omitempty"`

	// hash identifies what the InferenceService said of its predictor when they became the sides.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	Hash string `json:"hash,omitempty"`
}

// RolloutDrift tells of foreign changes of the route.
type RolloutDrift struct {
	// manager is the field manager that made the last one; empty if the route was deleted, which leaves no name behind.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	Manager string `json:"manager,omitempty"`

	// repairs are the times at which the route was put right, the newest last. They are forgotten after ten minutes, and
	// when the spec is edited.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=60
	Repairs []metav1.Time `json:"repairs,omitempty"`
}

// RolloutWeights are the shares of the two sides, asked and in force.
type RolloutWeights struct {
	// desired is what the spec asks for.
	// +optional
	Desired *WeightPair `json:"desired,omitempty"`

	// applied is what the route carries. It is set once the API server has acknowledged it and, of an HTTPRoute, once the
	// gateways have accepted it.
	// +optional
	Applied *WeightPair `json:"applied,omitempty"`

	// lastAppliedTime is when applied last changed.
	// +optional
	LastAppliedTime *metav1.Time `json:"lastAppliedTime,omitempty"`
}

// WeightPair is the share of each side in percent; the two add up to 100.
type WeightPair struct {
	// stable is the share of the stable side, 0 to 100.
	// +required
	Stable int32 `json:"stable"`

	// canary is the share of the canary side, 0 to 100.
	// +required
	Canary int32 `json:"canary"`
}

// CanaryRollout shares traffic between two InferenceServices, and follows every edit of its share at once.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=cro,categories=outrigger
// +kubebuilder:printcolumn:name="Stable",type=string,JSONPath=`.spec.stable.inferenceService`
// +kubebuilder:printcolumn:name="Canary",type=string,JSONPath=`.spec.canary.inferenceService`
// +kubebuilder:printcolumn:name="Desired",type=integer,JSONPath=`.status.weights.desired.canary`
// +kubebuilder:printcolumn:name="Applied",type=integer,JSONPath=`.status.weights.applied.canary`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 63 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name must be a DNS label of at most 63 characters that starts with a letter, because a Service is named after it"
type CanaryRollout struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec says how traffic is shared.
	// +required
	Spec CanaryRolloutSpec `json:"spec"`
	// status is what the rollout has come to.
	// +optional
	Status CanaryRolloutStatus `json:"status,omitzero"`
}

// CanaryRolloutList is a list of CanaryRollout objects.
//
// +kubebuilder:object:root=true
type CanaryRolloutList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []CanaryRollout `json:"items"`
}
