// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"serverless.xyz/outrigger/apis/v1alpha1"
)

// app is what all commands share.
type app struct {
	in  io.Reader
	out io.Writer

	rules     *clientcmd.ClientConfigLoadingRules
	overrides clientcmd.ConfigOverrides
	output    string
	timeout   time.Duration
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:           "kubectl-outrigger",
		Short:         "Look after what Outrigger does to InferenceServices",
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl outrigger"},
		Args:          cobra.ArbitraryArgs,
		RunE:          helpOrComplain,
		Version:       version(),
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w; %w", err, errUsage) })
	a.rules = clientcmd.NewDefaultClientConfigLoadingRules()
	flags := root.PersistentFlags()
	flags.StringVar(&a.rules.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "path of the kubeconfig")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	clientcmd.BindOverrideFlags(&a.overrides, flags, names)
	flags.StringVarP(&a.output, "output", "o", "text", "text or json")
	flags.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long to wait for the operator to act; 0 does not wait")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{"text", "json"}, a.output) {
			return fmt.Errorf("--output is %q; it must be text or json; %w", a.output, errUsage)
		}
		return nil
	}
	root.AddCommand(newCanary(a))
	return root
}

// helpOrComplain answers who names no command, or none that there is.
func helpOrComplain(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		meant := ""
		cmd.SuggestionsMinimumDistance = 2
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			meant = "did you mean " + strings.Join(near, " or ") + "? "
		}
		return fmt.Errorf("there is no command %q; %s%w", args[0], meant, errUsage)
	}
	return cmd.Help()
}

func newCanary(a *app) *cobra.Command {
	canary := &cobra.Command{
		Use: "canary", Aliases: []string{"canaries", "rollout"}, Short: "Show canary rollouts, and tell them what to do",
		Args: cobra.ArbitraryArgs, RunE: helpOrComplain,
	}
	canary.AddCommand(
		a.command("status [NAME]", "Show one rollout, or all of the namespace", 0, a.status),
		a.command("watch NAME", "Show a rollout as it goes", 1, a.watch),
		a.planCommand(),
		a.command("set-percent NAME PERCENT", "Give the canary this share of the requests, 0 to 100", 2, a.setPercent),
		a.command("pause NAME", "Take no further step; the weights stay", 1, a.suspend(true)),
		a.command("resume NAME", "Go on after a pause", 1, a.suspend(false)),
	)
	for _, v := range verbs {
		canary.AddCommand(a.command(v.name+" NAME", v.short, 1, a.say(v)))
	}
	return canary
}

// command returns a command that takes this many arguments, or one more if its use names an optional one.
func (a *app) command(use, short string, arguments int, do func(*session, []string) error) *cobra.Command {
	most := max(arguments, 1)
	return &cobra.Command{
		Use: use, Short: short,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < arguments || len(args) > most {
				return fmt.Errorf("usage: kubectl outrigger canary %s; %w", use, errUsage)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			return do(s, args)
		},
		ValidArgsFunction: a.completeName,
	}
}

// completeName offers the names of the namespace's rollouts to a shell. Without an API server there are none to offer.
func (a *app) completeName(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const no = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, no
	}
	s, err := a.connect(cmd.Context())
	if err != nil {
		return nil, no
	}
	var list v1alpha1.CanaryRolloutList
	if err := s.client.List(s.ctx, &list, client.InNamespace(s.namespace)); err != nil {
		return nil, no
	}
	var names []cobra.Completion
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, no
}

// version is that of the source that this was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	return info.Main.Version
}

func (a *app) planCommand() *cobra.Command {
	o := planOptions{percent: -1}
	cmd := a.command("plan [NAME]", "Show what would change in the route, and change nothing", 0,
		func(s *session, args []string) error { return a.plan(s, args, o) })
	cmd.Long = "Show what would change in the route, and change nothing.\n\n" +
		"Without flags that is what the operator would do to the rollout as it is now: nothing, if it is at rest."
	cmd.Flags().IntVar(&o.percent, "percent", -1, "with this canaryPercent")
	cmd.Flags().StringVarP(&o.file, "filename", "f", "", "with the CanaryRollout of this file, or of standard input if it is -")
	cmd.Flags().StringVar(&o.domain, "cluster-domain", "",
		"DNS domain of the cluster's Services (default that of another rollout's status.host, or cluster.local)")
	return cmd
}

// verb is something that a person says to a rollout with a strategy.
type verb struct {
	name, short, annotation string
	// phases are those in which it does something.
	phases []v1alpha1.RolloutPhase
}

var verbs = []verb{
	{
		"promote", "Take the next step now, whatever the rollout waits for", v1alpha1.AnnotationPromote,
		[]v1alpha1.RolloutPhase{
			v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding, v1alpha1.PhaseBaking,
		},
	},
	{
		"skip", "Set the last step's share at once, and bake", v1alpha1.AnnotationSkip,
		[]v1alpha1.RolloutPhase{v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding},
	},
	{
		"abort", "Give stable everything", v1alpha1.AnnotationAbort,
		[]v1alpha1.RolloutPhase{
			v1alpha1.PhasePending, v1alpha1.PhaseProgressing, v1alpha1.PhasePaused, v1alpha1.PhaseHolding,
			v1alpha1.PhaseBaking, v1alpha1.PhaseSucceeded,
		},
	},
	{
		"retry", "Begin anew at the first step", v1alpha1.AnnotationRetry,
		[]v1alpha1.RolloutPhase{v1alpha1.PhaseRolledBack, v1alpha1.PhaseHolding},
	},
}

// parsePercent reads a share.
func parsePercent(text string) (int32, error) {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 || n > 100 {
		return 0, fmt.Errorf("PERCENT is %q; it must be a whole number from 0 to 100; %w", text, errUsage)
	}
	return int32(n), nil
}
