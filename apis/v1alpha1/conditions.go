// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types.
const (
	// ConditionReady is True when the object is usable now for what its spec asks.
	ConditionReady = "Ready"
	// ConditionStalled is True when nothing but a change by the user can help; its message says which.
	ConditionStalled = "Stalled"
	// ConditionAvailable is True when a Memcached serves, be it with fewer or more instances than asked, or is asked
	// for none.
	ConditionAvailable = "Available"
	// ConditionMetricsAvailable is True when the statistics of every serving instance of a Memcached could be read.
	ConditionMetricsAvailable = "MetricsAvailable"
	// ConditionSidecarsIncomplete is True on an InferenceService whose pods do not get all that its annotations and
	// policies ask for; its message says why. An InferenceService that gets all does not have the condition.
	ConditionSidecarsIncomplete = "SidecarsIncomplete"
	// ConditionAccepted is True when the API server has accepted, dry, a pod that a SidecarPolicy equipped. One that is
	// False takes the policy out of force.
	ConditionAccepted = "Accepted"
	// ConditionRolledOut is True when every running pod that a SidecarPolicy equips carries what is asked for now; its
	// message says what the others wait for.
	ConditionRolledOut = "RolledOut"
	// ConditionDriftDetected is True while a CanaryRollout remembers that somebody else changed its route, and not there
	// otherwise.
	ConditionDriftDetected = "DriftDetected"
	// ConditionRouteApplied is True when the route of a CanaryRollout carries the wanted weights.
	ConditionRouteApplied = "RouteApplied"
)

// Reasons of conditions.
const (
	// ReasonReady says that all is as the spec asks.
	ReasonReady = "Ready"
	// ReasonNothingPicked says that a policy is in force and picks no InferenceService.
	ReasonNothingPicked = "NothingPicked"
	// ReasonNotStalled says that nothing is asked of the user.
	ReasonNotStalled = "NotStalled"
	// ReasonScaledToZero says that a Memcached is asked for no instance and has none.
	ReasonScaledToZero = "ScaledToZero"
	// ReasonWaitingForInstances says that instances of a Memcached are still starting.
	ReasonWaitingForInstances = "WaitingForInstances"
	// ReasonWaitingForScalingWindow says that a Memcached will shrink once its scalingWindow has passed.
	ReasonWaitingForScalingWindow = "WaitingForScalingWindow"
	// ReasonInstancesUnreachable says that statistics of some serving instances could not be read.
	ReasonInstancesUnreachable = "InstancesUnreachable"
	// ReasonNameTaken says that an object of a name that Outrigger needs exists and belongs to somebody else.
	ReasonNameTaken = "NameTaken"
	// ReasonRefused says that the API server refused an object that Outrigger must write; the message holds its words.
	ReasonRefused = "Refused"
	// ReasonMemcachedNotFound says that the Memcached that a SidecarPolicy names does not exist.
	ReasonMemcachedNotFound = "MemcachedNotFound"
	// ReasonInvalidAnnotation says that an annotation of an InferenceService is unknown or has an impossible value.
	ReasonInvalidAnnotation = "InvalidAnnotation"
	// ReasonPolicyNotFound says that the SidecarPolicy that an InferenceService names does not exist.
	ReasonPolicyNotFound = "PolicyNotFound"
	// ReasonInvalidPolicy says that a SidecarPolicy that could pick an InferenceService cannot be understood.
	ReasonInvalidPolicy = "InvalidPolicy"
	// ReasonWaitingForNodeCaches says that not every node has the feature cache yet that its pods are to share.
	ReasonWaitingForNodeCaches = "WaitingForNodeCaches"
	// ReasonNoRoom says that a pod cannot have a sidecar beside what it has already.
	ReasonNoRoom = "NoRoom"
	// ReasonNoGPU says that GPUs were to be checked, and the pod has none that can be.
	ReasonNoGPU = "NoGPU"
	// ReasonForbiddenByKnative says that Knative's webhooks refuse what KServe makes of an InferenceService, so that there
	// is no pod to equip.
	ReasonForbiddenByKnative = "ForbiddenByKnative"
	// ReasonAccepted says that the API server accepts pods as a policy has them.
	ReasonAccepted = "Accepted"
	// ReasonRolledOut says that every running pod carries what the policies ask for now.
	ReasonRolledOut = "RolledOut"
	// ReasonRollingOut says that KServe is replacing pods.
	ReasonRollingOut = "RollingOut"
	// ReasonWaitingForRestart says that pods change when something else restarts them.
	ReasonWaitingForRestart = "WaitingForRestart"
	// ReasonHeldByPolicy says that no pod is replaced, because a SidecarPolicy that could pick it cannot be understood.
	ReasonHeldByPolicy = "HeldByPolicy"
	// ReasonTrialRefused says that the API server refused a pod as it would be made; none is replaced. The message holds
	// its words.
	ReasonTrialRefused = "TrialRefused"
	// ReasonWaitingForWebhook says that a trial pod came back without what it is to carry; none is replaced until one
	// comes back with it.
	ReasonWaitingForWebhook = "WaitingForWebhook"
	// ReasonSidecarsComplete says that the pods of an InferenceService get all that is asked for, again.
	ReasonSidecarsComplete = "SidecarsComplete"
	// ReasonInferenceServiceNotFound says that an InferenceService that a CanaryRollout names does not exist.
	ReasonInferenceServiceNotFound = "InferenceServiceNotFound"
	// ReasonInferenceServiceNotReady says that an InferenceService that must take traffic is not ready for it.
	ReasonInferenceServiceNotReady = "InferenceServiceNotReady"
	// ReasonVirtualServiceNotFound says that the VirtualService that a CanaryRollout adopts does not exist.
	ReasonVirtualServiceNotFound = "VirtualServiceNotFound"
	// ReasonHTTPRouteNotFound says that the HTTPRoute that a CanaryRollout adopts does not exist.
	ReasonHTTPRouteNotFound = "HTTPRouteNotFound"
	// ReasonRouteNotFound says that the adopted route lacks the named rule, or the rule lacks a destination.
	ReasonRouteNotFound = "RouteNotFound"
	// ReasonRouteConflict says that another CanaryRollout already routes the same host, or edits the same route.
	ReasonRouteConflict = "RouteConflict"
	// ReasonWeightsApplied says that the route carries the wanted weights.
	ReasonWeightsApplied = "WeightsApplied"
)
