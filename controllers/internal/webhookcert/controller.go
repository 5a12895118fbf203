// SPDX-License-Identifier: Apache-2.0

// Package webhookcert makes and renews the certificate of the manager's webhook, and has the API server trust it.
//
// It lives in a Secret of the manager's namespace. Every replica runs this controller: whoever is first writes, the
// others take what they find. The certificate is served from memory, so it is in use the moment that it is known.
package webhookcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/status"
)

const (
	// ConfigurationName is the name of the MutatingWebhookConfiguration. It sorts after KServe's, so that our webhook
	// is usually called second; nothing depends on that.
	ConfigurationName = "outrigger-pod-webhook"
	// SecretName is the name of the Secret that holds the certificate.
	SecretName = "outrigger-webhook-cert" //nolint:gosec // a name, not a secret.

	fieldManager       = client.FieldOwner("outrigger-webhookcert")
	keyAuthorities     = "ca.crt"
	keyAuthoritySigner = "ca.key"
	// checkInterval is how often the age of the certificates is looked at.
	checkInterval = time.Hour
)

// Reconciler keeps the Secret, the webhook configuration and the certificate in memory in step.
type Reconciler struct {
	clock     clock.PassiveClock
	client    client.Client
	namespace string
	names     []string
	serving   atomic.Pointer[tls.Certificate]
}

// New returns a Reconciler whose certificate is valid for the given DNS names and IP addresses.
func New(c client.Client, clk clock.PassiveClock, namespace string, names ...string) *Reconciler {
	return &Reconciler{clock: clk, client: c, namespace: namespace, names: names}
}

// GetCertificate serves the current certificate; see tls.Config.
func (r *Reconciler) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if certificate := r.serving.Load(); certificate != nil {
		return certificate, nil
	}
	return nil, errors.New("the webhook's certificate is not there yet")
}

// Ready is a readiness check: it fails until there is a certificate.
func (r *Reconciler) Ready(*http.Request) error {
	_, err := r.GetCertificate(nil)
	return err
}

// +kubebuilder:rbac:groups="",namespace=outrigger-system,resources=secrets,verbs=create
// +kubebuilder:rbac:groups="",namespace=outrigger-system,resources=secrets,resourceNames=outrigger-webhook-cert,verbs=get;list;watch;update
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=outrigger-pod-webhook,verbs=get;list;watch;patch

// Reconcile renews what is due, has it trusted, and serves it.
func (r *Reconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var secret corev1.Secret
	err := r.client.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: SecretName}, &secret)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reading the webhook's certificate: %w", err)
	}
	next, changed, err := renew(bundleOf(&secret), r.names, r.clock.Now())
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("making the webhook's certificate: %w", err)
	}
	if changed {
		if err := r.write(ctx, &secret, next); err != nil {
			return status.Result(0, err)
		}
	}
	// Trust comes before use, so that no request meets a certificate that the API server does not know.
	if err := r.trust(ctx, next.authorities); err != nil {
		return status.Result(0, err)
	}
	certificate, err := tls.X509KeyPair(next.certificate, next.key)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("loading the webhook's certificate: %w", err)
	}
	r.serving.Store(&certificate)
	return reconcile.Result{RequeueAfter: checkInterval}, nil
}

// write stores a bundle over the Secret that it was made from; if that has changed, the error is a conflict.
func (r *Reconciler) write(ctx context.Context, seen *corev1.Secret, next bundle) error {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.namespace, Name: SecretName, ResourceVersion: seen.ResourceVersion,
			Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		},
		Type: corev1.SecretTypeTLS,
		Data: map[string][]byte{
			keyAuthorities:          next.authorities,
			keyAuthoritySigner:      next.authorityKey,
			corev1.TLSCertKey:       next.certificate,
			corev1.TLSPrivateKeyKey: next.key,
		},
	}
	var err error
	if seen.ResourceVersion == "" {
		err = r.client.Create(ctx, secret, fieldManager)
	} else {
		err = r.client.Update(ctx, secret, fieldManager)
	}
	if err != nil {
		return fmt.Errorf("storing the webhook's certificate: %w", err)
	}
	return nil
}

func (r *Reconciler) trust(ctx context.Context, authorities []byte) error {
	var configuration admissionv1.MutatingWebhookConfiguration
	if err := r.client.Get(ctx, client.ObjectKey{Name: ConfigurationName}, &configuration); err != nil {
		if apierrors.IsNotFound(err) {
			return nil // its creation wakes us
		}
		return fmt.Errorf("reading the webhook configuration: %w", err)
	}
	before := configuration.DeepCopy()
	changed := false
	for i := range configuration.Webhooks {
		config := &configuration.Webhooks[i].ClientConfig
		if !bytes.Equal(config.CABundle, authorities) {
			config.CABundle, changed = authorities, true
		}
	}
	if !changed {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.client.Patch(ctx, &configuration, patch, fieldManager); err != nil {
		return fmt.Errorf("having the API server trust the webhook: %w", err)
	}
	return nil
}

func bundleOf(secret *corev1.Secret) bundle {
	return bundle{
		authorities:  secret.Data[keyAuthorities],
		authorityKey: secret.Data[keyAuthoritySigner],
		certificate:  secret.Data[corev1.TLSCertKey],
		key:          secret.Data[corev1.TLSPrivateKeyKey],
	}
}

// SetupWithManager registers the controller. It runs on every replica.
func (r *Reconciler) SetupWithManager(mgr ctrl.Manager) error {
	one := reconcile.Request{NamespacedName: client.ObjectKey{Name: ConfigurationName}}
	always := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{one}
	})
	return builder.ControllerManagedBy(mgr).
		Named("webhookcert").
		WithOptions(controller.Options{NeedLeaderElection: new(bool)}).
		Watches(&corev1.Secret{}, always).
		Watches(&admissionv1.MutatingWebhookConfiguration{}, always).
		WatchesRawSource(source.Func(func(
			_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request],
		) error {
			queue.Add(one)
			return nil
		})).
		Complete(r)
}
