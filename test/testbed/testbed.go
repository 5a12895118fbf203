// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// Testbed is a running cluster. Its methods may be called from several goroutines.
type Testbed struct {
	*instance

	options   Options
	began     time.Time
	bin       *installed
	ca        *authority
	config    *rest.Config
	discovery discovery.DiscoveryInterface
	dynamic   dynamic.Interface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
	sayMu     sync.Mutex
	stateMu   sync.Mutex
	state     State        // Its addresses appear as parts start.
	runs      atomic.Int64 // Numbers the programs that run to their end.
	extras    atomic.Int64 // Numbers the ports given to servers started later.
}

// Start starts a testbed and returns when all its parts are ready. The first start of a size builds programs, which
// takes minutes. On an error nothing is left running; the error carries the end of the failed component's log.
func Start(ctx context.Context, options Options) (*Testbed, error) {
	parts, err := options.parts()
	if err != nil {
		return nil, err
	}
	if options.Size == Node {
		if err := canRunPods(); err != nil {
			return nil, err
		}
	}
	b, err := newBuilder(options.Progress)
	if err != nil {
		return nil, err
	}
	bin, err := b.install(ctx, programsFor(parts), manifestsFor(parts))
	if err != nil {
		return nil, err
	}
	if options.Progress == nil {
		options.Progress = io.Discard
	}
	in, err := newInstance(ctx, b.cache, bin.programs[keeperProgram.name], options.Size == Node)
	if err != nil {
		return nil, err
	}
	t := &Testbed{instance: in, options: options, bin: bin, began: time.Now()}
	if err := t.bringUp(ctx, parts); err != nil {
		return nil, errors.Join(err, t.Stop())
	}
	return t, nil
}

func (t *Testbed) bringUp(ctx context.Context, parts []Part) error {
	t.state = State{
		ID: t.id, Size: t.options.Size.String(), Folder: t.dir, Owner: os.Getpid(), Logs: t.logDir(),
		Kubeconfig: t.path("kubeconfig"), Kubectl: t.bin.programs[kubectlProgram.name], HostIP: loopback,
	}
	if t.options.Size == Node {
		if err := t.connectNode(ctx); err != nil {
			return err
		}
	}
	if err := t.startAPI(ctx, parts); err != nil {
		return err
	}
	if err := t.startParts(ctx, parts); err != nil {
		return err
	}
	if t.options.Prometheus != "" {
		if _, err := t.StartPrometheus(ctx, t.options.Prometheus); err != nil {
			return err
		}
	}
	t.say("all is ready")
	t.set(func(s *State) { s.Started = time.Now() })
	return t.saveState()
}

const signalKill = int(syscall.SIGKILL)

func (t *Testbed) set(change func(*State)) {
	t.stateMu.Lock()
	defer t.stateMu.Unlock()
	change(&t.state)
}

func (t *Testbed) saveState() error { return t.save(t.State()) }

func (t *Testbed) say(format string, args ...any) {
	after := time.Since(t.began).Seconds()
	t.sayMu.Lock()
	defer t.sayMu.Unlock()
	_, _ = fmt.Fprintf(t.options.Progress, "testbed: %5.1f s  "+format+"\n", append([]any{after}, args...)...)
}

// Stop ends the testbed and returns when nothing of it is left: no process, mount, interface, cgroup or file.
func (t *Testbed) Stop() error {
	return t.keeper.Stop()
}

// Detach lets the testbed run on after its owner has ended, until [Down].
func (t *Testbed) Detach() error {
	return t.keeper.Detach()
}

// Config returns a copy of the administrator's client configuration. It has no client-side rate limit.
func (t *Testbed) Config() *rest.Config { return rest.CopyConfig(t.config) }

// State returns addresses, paths and keys of the testbed.
func (t *Testbed) State() State {
	t.stateMu.Lock()
	defer t.stateMu.Unlock()
	return t.state
}

// Kubeconfig returns the path of the administrator's kubeconfig.
func (t *Testbed) Kubeconfig() string { return t.state.Kubeconfig }

// Kubectl returns the path of a kubectl of the API server's version.
func (t *Testbed) Kubectl() string { return t.state.Kubectl }

// Logs returns the folder of the components' logs, one file each. It is gone after Stop.
func (t *Testbed) Logs() string { return t.state.Logs }

// S3 returns the URL of the S3 server, which this machine and the pods reach, and its administrator's keys. All are
// empty if the testbed has none. Its region is us-east-1, and buckets are named in the path.
func (t *Testbed) S3() (endpoint, accessKey, secretKey string) {
	s := t.State()
	return s.S3Endpoint, s.S3AccessKey, s.S3SecretKey
}

// XDSAddress returns the host:port where istiod serves xDS in plain text, empty if the testbed has no Istio.
func (t *Testbed) XDSAddress() string { return t.State().XDSAddress }

// PrometheusURL returns the URL of Prometheus, empty if the testbed has none.
func (t *Testbed) PrometheusURL() string { return t.State().PrometheusURL }

// NodeIP returns the node's address, which this machine and the pods reach, empty without a node.
func (t *Testbed) NodeIP() string { return t.State().NodeIP }

// HostIP returns the address at which the API server and the pods reach a process of this machine that listens there
// or on all addresses. Webhooks that a test serves itself are registered with it.
func (t *Testbed) HostIP() string { return t.state.HostIP }
