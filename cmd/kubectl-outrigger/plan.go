// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"serverless.xyz/outrigger/apis/v1alpha1"
	"serverless.xyz/outrigger/controllers/canaryrollout"
	"serverless.xyz/outrigger/routing"
)

// planOptions say what is tried.
type planOptions struct {
	percent int
	file    string
	domain  string
}

// planReport is what would be done. Its JSON form is stable.
type planReport struct {
	Namespace string              `json:"namespace"`
	Name      string              `json:"name"`
	Desired   v1alpha1.WeightPair `json:"desired"`
	Weights   v1alpha1.WeightPair `json:"weights"`
	// Diff is the change of the route, empty if there is none.
	Diff string `json:"diff"`
	// Why tells why the route is left as it is, empty if it is not.
	Why string `json:"why,omitempty"`
	// Partial tells that other namespaces could not be read, so that a route there which takes the same host is not known.
	Partial bool `json:"partial,omitempty"`
}

// nearsighted is a client that lists its own namespace only where its user may not list all of them.
type nearsighted struct {
	client.Client

	namespace string
	partial   bool
}

// List implements client.Reader.
func (n *nearsighted) List(ctx context.Context, list client.ObjectList, options ...client.ListOption) error {
	err := n.Client.List(ctx, list, options...)
	if !apierrors.IsForbidden(err) {
		return err
	}
	n.partial = true
	return n.Client.List(ctx, list, append(options, client.InNamespace(n.namespace))...)
}

// plan works out, by the operator's own code and with the API server's word on the edit, what would change.
func (a *app) plan(s *session, args []string, o planOptions) error {
	r, err := a.tried(s, args, o)
	if err != nil {
		return err
	}
	domain := routing.DomainOf(o.domain)
	if o.domain == "" {
		if domain, err = s.learnDomain(); err != nil {
			return err
		}
	}
	reader := &nearsighted{Client: s.client, namespace: s.namespace}
	planner := canaryrollout.New(reader, reader, clock.RealClock{}, record.NewFakeRecorder(0)).InDomain(domain)
	preview, err := planner.Preview(s.ctx, r)
	if err != nil {
		return err
	}
	out := planReport{
		Namespace: r.Namespace, Name: r.Name, Desired: preview.Desired, Weights: preview.Weights,
		Diff: preview.Diff, Why: preview.Why, Partial: reader.partial,
	}
	return a.print(out, out.text)
}

// learnDomain learns the DNS domain of the cluster from what the operator, which knows it, says of any rollout.
func (s *session) learnDomain() (routing.Domain, error) {
	domain := routing.DefaultDomain
	var list v1alpha1.CanaryRolloutList
	if err := s.client.List(s.ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return domain, s.explain("", err)
	}
	for i := range list.Items {
		r := &list.Items[i]
		if found, ok := strings.CutPrefix(r.Status.Host, r.Name+"."+r.Namespace+".svc."); ok {
			domain = routing.DomainOf(found)
		}
	}
	return domain, nil
}

func (p planReport) text(out io.Writer) {
	switch {
	case p.Why != "":
		_, _ = fmt.Fprintf(out, "%s: no change of the route: %s\n", p.Name, oneLine(p.Why))
	case p.Diff == "":
		_, _ = fmt.Fprintf(out, "%s: no change of the route; the canary gets %d percent\n", p.Name, p.Weights.Canary)
	default:
		_, _ = fmt.Fprintf(out, "%s: the canary would get %d percent", p.Name, p.Weights.Canary)
		if p.Desired != p.Weights {
			_, _ = fmt.Fprintf(out, ", not the %d asked", p.Desired.Canary)
		}
		_, _ = fmt.Fprintf(out, "\n%s", p.Diff)
	}
	if p.Partial {
		_, _ = fmt.Fprintln(
			out,
			"You may not read other namespaces; if a route there takes the same host, that is not in this plan.",
		)
	}
}

// tried returns the rollout as it would be, by the API server's dry run, which defaults and refuses as it does always.
func (a *app) tried(s *session, args []string, o planOptions) (*v1alpha1.CanaryRollout, error) {
	switch {
	case o.file != "":
		if len(args) > 0 || o.percent >= 0 {
			return nil, fmt.Errorf("--filename goes with neither a name nor --percent; %w", errUsage)
		}
		return a.fromFile(s, o.file)
	case len(args) == 0:
		return nil, fmt.Errorf("give a name or --filename; %w", errUsage)
	}
	r, err := s.get(args[0])
	if err != nil {
		return nil, err
	}
	r.Spec.DryRun = false // that is what is asked here: what would be done without it
	if o.percent >= 0 {
		change := map[string]any{"spec": map[string]any{"canaryPercent": o.percent}}
		if err := s.patch(r, change, client.DryRunAll); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (a *app) fromFile(s *session, file string) (*v1alpha1.CanaryRollout, error) {
	raw, err := a.read(file)
	if err != nil {
		return nil, err
	}
	object, err := rolloutIn(raw)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	if object.GetNamespace() == "" {
		object.SetNamespace(s.namespace)
	}
	err = s.client.Apply(s.ctx, client.ApplyConfigurationFromUnstructured(object),
		client.FieldOwner(fieldManager), client.ForceOwnership, client.DryRunAll)
	if err != nil {
		return nil, s.explain(object.GetName(), err)
	}
	var r v1alpha1.CanaryRollout
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	r.Spec.DryRun = false
	return &r, nil
}

// rolloutIn returns the one CanaryRollout among the documents of a file.
func rolloutIn(raw []byte) (*unstructured.Unstructured, error) {
	var found *unstructured.Unstructured
	var others []string
	documents := yamlutil.NewYAMLReader(bufio.NewReader(bytes.NewReader(raw)))
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("splitting it into documents: %w", err)
		}
		one := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(text, &one.Object); err != nil {
			return nil, err //nolint:wrapcheck // it names the line.
		}
		switch kind := one.GetKind(); {
		case len(one.Object) == 0: // comments
		case kind != "CanaryRollout":
			others = append(others, strconv.Quote(kind))
		case found != nil:
			return nil, errors.New("it holds several CanaryRollouts; it must hold one")
		default:
			found = one
		}
	}
	if found == nil {
		return nil, fmt.Errorf("it holds no CanaryRollout but %s; it must hold one CanaryRollout",
			cmp.Or(strings.Join(others, ", "), "nothing"))
	}
	return found, nil
}

func (a *app) read(file string) ([]byte, error) {
	if file == "-" {
		raw, err := io.ReadAll(a.in)
		if err != nil {
			return nil, fmt.Errorf("reading standard input: %w", err)
		}
		return raw, nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the rollout: %w", err)
	}
	return raw, nil
}

// listOptions begins a watch where a list ended.
func listOptions(version string) *metav1.ListOptions {
	return &metav1.ListOptions{ResourceVersion: version}
}
