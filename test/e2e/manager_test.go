// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestMetricsNeedPermission: the manager's metrics are served over TLS to those whom the API server lets read them, and
// to nobody else.
func TestMetricsNeedPermission(t *testing.T) {
	const ns = "outrigger-system"
	var pods corev1.PodList
	must(t, shared.Client.List(t.Context(), &pods, client.InNamespace(ns), client.MatchingLabels{
		"app.kubernetes.io/name": "outrigger", "app.kubernetes.io/component": "manager",
	}))
	if len(pods.Items) == 0 {
		t.Fatal("no manager runs")
	}
	url := "https://" + net.JoinHostPort(pods.Items[0].Status.PodIP, "8443") + "/metrics"
	for _, args := range [][]string{
		{"-n", ns, "create", "serviceaccount", "scraper"},
		{"-n", ns, "create", "serviceaccount", "stranger"},
		{"create", "clusterrolebinding", "scraper", "--clusterrole=outrigger-metrics-reader", "--serviceaccount=" + ns + ":scraper"},
	} {
		_, err := shared.KubectlRun(t.Context(), args...)
		must(t, err)
	}
	for account, want := range map[string]int{
		"": http.StatusUnauthorized, "stranger": http.StatusForbidden, "scraper": http.StatusOK,
	} {
		bearer := token(t, ns, account)
		status, body := scrape(t, url, bearer)
		// The API server takes up new rights with a delay, and the manager asks again about who had none only after a while.
		for deadline := time.Now().Add(within); status == http.StatusForbidden && want == http.StatusOK &&
			time.Now().Before(deadline); time.Sleep(time.Second) {
			status, body = scrape(t, url, bearer)
		}
		if status != want {
			t.Errorf("account %q gets %d, want %d", account, status, want)
		}
		if want == http.StatusOK && !strings.Contains(body, "controller_runtime_reconcile_total") {
			t.Error("the metrics lack controller_runtime_reconcile_total")
		}
	}
}

func token(t *testing.T, ns, account string) string {
	t.Helper()
	if account == "" {
		return ""
	}
	out, err := shared.KubectlRun(t.Context(), "-n", ns, "create", "token", account)
	must(t, err)
	return strings.TrimSpace(out)
}

func scrape(t *testing.T, url, token string) (status int, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	must(t, err)
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	// The certificate is the manager's own; who may read is what is tested.
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	response, err := (&http.Client{Transport: transport}).Do(request)
	must(t, err)
	defer func() { _ = response.Body.Close() }()
	raw, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(raw)
}
