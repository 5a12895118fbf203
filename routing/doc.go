// SPDX-License-Identifier: Apache-2.0

// Package routing decides how traffic is shared between the two sides of a rollout, and turns the decision into routes:
// a VirtualService that Outrigger owns, or a guarded JSON Patch of one that a user owns.
//
// Everything in it is a pure function of its arguments. It has no client, no clock and no logger, and it never changes
// an object that it was given. VirtualServices are handled as unstructured objects, so that fields which this release
// has never heard of survive.
package routing
