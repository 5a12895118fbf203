// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// status shows one rollout, or all of the namespace.
func (a *app) status(s *session, args []string) error {
	if len(args) == 1 {
		r, err := s.get(args[0])
		if err != nil {
			return err
		}
		shown := reportOf(r)
		return a.print(shown, func(out io.Writer) { shown.picture(out, time.Now(), a.width()) })
	}
	var list v1alpha1.CanaryRolloutList
	if err := s.client.List(s.ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return s.explain("", err)
	}
	reports := make([]report, 0, len(list.Items)) // so that none is [] in JSON
	for i := range list.Items {
		reports = append(reports, reportOf(&list.Items[i]))
	}
	return a.print(reports, func(out io.Writer) {
		if len(reports) == 0 {
			_, _ = fmt.Fprintf(out, "No CanaryRollouts in namespace %q.\n", s.namespace)
			return
		}
		table := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
		_, _ = fmt.Fprintln(table, "NAME\tSTABLE\tCANARY\tSHARE\tSTATE")
		for _, r := range reports {
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", r.Name, r.Stable.name(), r.Canary.name(),
				share(r.Canary), strings.Join(r.headline(time.Now()), " "))
		}
		_ = table.Flush()
	})
}
