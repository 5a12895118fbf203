// SPDX-License-Identifier: Apache-2.0

// Package status is the one place where controllers report: it writes conditions and status, sends events, and turns
// the four kinds of outcome (waiting, transient error, conflict, stalled) into a result for the work queue.
package status

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/apply"
)

// maxMessage bounds a condition's message in bytes, so that a long error cannot bloat the object.
const maxMessage = 1024

// StalledError says that only a change by the user can help.
type StalledError struct {
	// Reason is a reason constant of the API package.
	Reason string
	// Message is one sentence that names the field or object and the mend.
	Message string
}

// Error implements error.
func (e *StalledError) Error() string { return e.Message }

// Stalledf returns a StalledError.
func Stalledf(reason, format string, args ...any) *StalledError {
	return &StalledError{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// AsStalled finds out whether an error means that a user must act: a StalledError, a name that is taken, or an object
// that the API server will not have.
func AsStalled(err error) (*StalledError, bool) {
	if stalled, ok := errors.AsType[*StalledError](err); ok {
		return stalled, true
	}
	if taken, ok := errors.AsType[*apply.TakenError](err); ok {
		return Stalledf(v1alpha1.ReasonNameTaken, "%s", taken.Error()), true
	}
	if apierrors.IsInvalid(err) || apierrors.IsForbidden(err) || apierrors.IsBadRequest(err) {
		return Stalledf(v1alpha1.ReasonRefused, "%s", err.Error()), true
	}
	return nil, false
}

// Condition is a condition without the fields that Set fills in.
type Condition struct {
	// Type, Reason are constants of the API package.
	Type, Reason string
	// Status is True, False or Unknown.
	Status metav1.ConditionStatus
	// Message is one sentence, stable between reconciles, without secrets.
	Message string
}

// Set writes conditions into a list, keeping the transition time of those whose status did not change.
func Set(list *[]metav1.Condition, generation int64, conditions ...Condition) {
	for _, c := range conditions {
		meta.SetStatusCondition(list, metav1.Condition{
			Type: c.Type, Status: c.Status, Reason: c.Reason, Message: truncate(c.Message), ObservedGeneration: generation,
		})
	}
}

// StalledCondition returns the Stalled condition for an error, which may be nil.
func StalledCondition(err error) Condition {
	if stalled, ok := AsStalled(err); ok {
		return Condition{
			Type: v1alpha1.ConditionStalled, Status: metav1.ConditionTrue, Reason: stalled.Reason, Message: stalled.Message,
		}
	}
	return Condition{
		Type: v1alpha1.ConditionStalled, Status: metav1.ConditionFalse, Reason: v1alpha1.ReasonNotStalled,
		Message: "Nothing needs to be done.",
	}
}

// Reporter writes the status of one kind and its events.
type Reporter struct {
	client   client.Client
	recorder record.EventRecorder
	manager  client.FieldOwner
}

// NewReporter returns a Reporter that writes under the given field manager.
func NewReporter(c client.Client, recorder record.EventRecorder, fieldManager string) *Reporter {
	return &Reporter{client: c, recorder: recorder, manager: client.FieldOwner(fieldManager)}
}

// Report writes the status of after, if it differs from that of before, in one request that fails with a conflict when
// the object has changed since it was read. An event follows when the Ready condition changed its reason.
func (r *Reporter) Report(
	ctx context.Context,
	before, after client.Object,
	conditions func(client.Object) []metav1.Condition,
) error {
	if equality.Semantic.DeepEqual(before, after) {
		return nil
	}
	was, is := ready(conditions(before)), ready(conditions(after))
	base := before.DeepCopyObject().(client.Object) //nolint:forcetypeassert // a copy of an object is one.
	patch := client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{})
	if err := r.client.Status().Patch(ctx, after, patch, r.manager); err != nil {
		return fmt.Errorf("writing status: %w", err)
	}
	if is != nil && (was == nil || was.Reason != is.Reason || was.Status != is.Status) {
		kind := corev1.EventTypeNormal
		if meta.IsStatusConditionTrue(conditions(after), v1alpha1.ConditionStalled) {
			kind = corev1.EventTypeWarning
		}
		r.recorder.Event(after, kind, is.Reason, is.Message)
	}
	return nil
}

// Result turns the outcome of a reconcile into what the work queue needs: wake says when to look again if nothing
// happens before, 0 for never.
func Result(wake time.Duration, err error) (reconcile.Result, error) {
	var stalled *StalledError
	var taken *apply.TakenError
	switch {
	case err == nil:
		return reconcile.Result{RequeueAfter: wake}, nil
	case errors.Is(err, apply.ErrOwnerGone), errors.As(err, &taken):
		// The deletion of the object in the way is not always one that we watch.
		return reconcile.Result{RequeueAfter: 10 * time.Second}, nil
	case errors.As(err, &stalled):
		return reconcile.Result{RequeueAfter: wake}, nil
	case isConflict(err):
		// Somebody was faster, or the cache is behind: look again with what is there by then.
		return reconcile.Result{RequeueAfter: 50 * time.Millisecond}, nil
	default:
		return reconcile.Result{}, err
	}
}

func isConflict(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

func ready(list []metav1.Condition) *metav1.Condition {
	return meta.FindStatusCondition(list, v1alpha1.ConditionReady)
}

func truncate(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-3], "") + "..."
}
