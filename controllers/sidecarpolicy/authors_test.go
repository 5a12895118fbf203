// SPDX-License-Identifier: Apache-2.0

package sidecarpolicy_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/internal/testcluster"
)

// TestPoliciesAreWrittenByThoseWhoMayCreatePods: the right to write policies alone is not enough.
func TestPoliciesAreWrittenByThoseWhoMayCreatePods(t *testing.T) {
	cluster := testcluster.New(t)
	namespace := cluster.Namespace(t)
	applyAuthorsPolicy(t, cluster.Client)
	grant := func(user string, rules ...rbacv1.PolicyRule) {
		meta := metav1.ObjectMeta{Namespace: namespace, Name: user}
		for _, o := range []client.Object{
			&rbacv1.Role{ObjectMeta: meta, Rules: rules},
			&rbacv1.RoleBinding{
				ObjectMeta: meta, Subjects: []rbacv1.Subject{{Kind: "User", Name: user, APIGroup: rbacv1.GroupName}},
				RoleRef: rbacv1.RoleRef{Kind: "Role", Name: user, APIGroup: rbacv1.GroupName},
			},
		} {
			if err := cluster.Client.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
	}
	policies := rbacv1.PolicyRule{
		APIGroups: []string{v1alpha1.GroupName},
		Resources: []string{"sidecarpolicies"},
		Verbs:     []string{"*"},
	}
	pods := rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"create"}}
	grant("writes-policies", policies)
	grant("creates-pods", policies, pods)

	create := func(user, name string) (*v1alpha1.SidecarPolicy, error) {
		p := preloadPolicy()
		p.Namespace, p.Name = namespace, name
		return p, as(t, cluster, user).Create(t.Context(), p)
	}
	const says = "only who may create pods there may write one"
	// The API server takes up a new admission policy, and new rights, with a delay.
	eventually(t, "the policy to be enforced", func(ctx context.Context) bool {
		p, err := create("writes-policies", "probe")
		if err == nil {
			_ = cluster.Client.Delete(ctx, p)
		}
		return err != nil && strings.Contains(err.Error(), says)
	})
	eventually(t, "who may create pods to write a policy", func(context.Context) bool {
		_, err := create("creates-pods", "one")
		return err == nil
	})
	p := &v1alpha1.SidecarPolicy{}
	key := client.ObjectKey{Namespace: namespace, Name: "one"}
	if err := cluster.Client.Get(t.Context(), key, p); err != nil {
		t.Fatal(err)
	}
	p.Labels = map[string]string{"team": "blue"}
	if err := as(t, cluster, "writes-policies").Update(t.Context(), p); err != nil {
		t.Errorf("a label cannot be edited: %v", err)
	}
	p.Spec.Preload.Image = "own:1"
	if err := as(t, cluster, "writes-policies").Update(t.Context(), p); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("an image was edited by who may not create pods: %v", err)
	}
}

func applyAuthorsPolicy(t *testing.T, c client.Client) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(testcluster.Root(), "config/webhook/policy-authors.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	objects := []client.Object{
		&admissionv1.ValidatingAdmissionPolicy{}, &admissionv1.ValidatingAdmissionPolicyBinding{},
	}
	for i, text := range strings.Split(string(raw), "\n---\n") {
		if err := yaml.UnmarshalStrict([]byte(text), objects[i]); err != nil {
			t.Fatal(err)
		}
		if err := c.Create(t.Context(), objects[i]); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Delete(context.WithoutCancel(t.Context()), objects[i]) })
	}
}

// as returns a client that acts as a user.
func as(t *testing.T, cluster *testcluster.Cluster, user string) client.Client {
	t.Helper()
	config := rest.CopyConfig(cluster.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	c, err := client.New(config, client.Options{Scheme: cluster.Client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// within bounds how long a test waits for what takes milliseconds.
const within = 3 * time.Minute

func eventually(t *testing.T, what string, ready func(context.Context) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for !ready(ctx) {
		if ctx.Err() != nil {
			t.Fatalf("waited %s for %s", within, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
