// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"serverless.xyz/outrigger/test/testbed/internal/keep"
)

// Each testbed has a slot, and each slot its own ports and addresses. Its first port, bound by the keeper for as long
// as it lives, is the machine-wide lock on the slot: it also holds between users whose cache folders differ. The ports
// lie below those that the kernel hands out by itself.
const (
	slots        = 64
	firstPort    = 20000
	portsPerSlot = 40
)

// Ports of a slot, counted from its first.
const (
	portLock = iota
	portAPI
	portControllerManager
	portScheduler
	portS3
	portKServeWebhook
	portKServeMetrics
	portKServeHealth
	portXDS
	portIstioHTTP
	portIstioMonitoring
	portPrometheus
	portKnativeWebhook
	portKnativeWebhookProfiling
	portKnativeControllerProfiling
	portProxyHealth
	portDNSReady
	portMemcached // And all that follow.
)

// instance is the folder, the slot and the keeper of one testbed.
type instance struct {
	id     string
	dir    string
	slot   int
	keeper *keep.Keeper
	client *keep.Client
}

func runDir(cache string) string { return filepath.Join(cache, "run") }

// newInstance takes a free slot, removes what dead testbeds left, and starts a keeper.
func newInstance(ctx context.Context, cache, keeperProgram string, node bool) (*instance, error) {
	run := runDir(cache)
	if err := os.MkdirAll(run, 0o755); err != nil {
		return nil, fmt.Errorf("making the folder of running testbeds: %w", err)
	}
	// A new folder has no keeper for a moment, so that it looks dead: folders are made and removed in turn.
	turn, err := lockFile(ctx, filepath.Join(cache, "run.lock"), func() {})
	if err != nil {
		return nil, err
	}
	defer func() { _ = turn.Close() }()
	if err := cleanDead(run); err != nil {
		return nil, err
	}
	slot, held, err := takeSlot()
	if err != nil {
		return nil, err
	}
	defer func() { _ = held.Close() }()
	id := fmt.Sprintf("%d-%s", slot, strings.ToLower(rand.Text()[:5]))
	in := &instance{id: id, dir: filepath.Join(run, id), slot: slot}
	// A unix socket's path has at most 107 characters.
	if len(in.path("run/containerd/containerd.sock.ttrpc")) > 100 {
		return nil, fmt.Errorf("the path of %s is too long for sockets: set OUTRIGGER_CACHE to a shorter one", in.dir)
	}
	for _, folder := range []string{in.dir, in.logDir(), in.path("tmp")} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return nil, fmt.Errorf("making the testbed's folder: %w", err)
		}
	}
	if in.keeper, err = keep.Launch(ctx, keeperProgram, in.dir, node, held); err != nil {
		return nil, errors.Join(err, os.RemoveAll(in.dir))
	}
	in.client = keep.NewClient(in.dir)
	return in, nil
}

// takeSlot returns a slot whose ports are all free, and the file that keeps it.
func takeSlot() (int, *os.File, error) {
	for slot := range slots {
		listener, err := listenLoopback(slotPort(slot, portLock))
		if err != nil {
			continue
		}
		if !portsFree(slot) {
			_ = listener.Close()
			continue
		}
		held, err := listener.File()
		if err = errors.Join(err, listener.Close()); err != nil {
			return 0, nil, fmt.Errorf("taking slot %d: %w", slot, err)
		}
		return slot, held, nil
	}
	return 0, nil, fmt.Errorf("all %d slots for testbeds are taken: stop one with: testbed down", slots)
}

func listenLoopback(port int) (*net.TCPListener, error) {
	return net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
}

// portsFree says whether no stranger listens on a port of the slot.
func portsFree(slot int) bool {
	for number := portLock + 1; number < portsPerSlot; number++ {
		listener, err := listenLoopback(slotPort(slot, number))
		if err != nil {
			return false
		}
		_ = listener.Close()
	}
	return true
}

func slotPort(slot, number int) int { return firstPort + slot*portsPerSlot + number }

func (in *instance) port(number int) int      { return slotPort(in.slot, number) }
func (in *instance) path(name string) string  { return filepath.Join(in.dir, name) }
func (in *instance) logDir() string           { return in.path("logs") }
func (in *instance) logOf(name string) string { return filepath.Join(in.logDir(), name+".log") }

// State is what is known of a running testbed. It lies in its folder as state.json.
type State struct {
	// ID names the testbed on this machine.
	ID string `json:"id"`
	// Size is api, control or node.
	Size string `json:"size"`
	// Folder holds everything that the testbed writes.
	Folder string `json:"folder"`
	// Owner is the process number that started the testbed.
	Owner int `json:"owner"`
	// Started is when it was ready.
	Started time.Time `json:"started,omitzero"`
	// Kubeconfig is the path of the administrator's configuration, Kubectl that of a fitting kubectl.
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
	// Logs is the folder of the components' logs.
	Logs string `json:"logs"`
	// S3Endpoint is the URL of the S3 server, empty if there is none; the keys are its administrator's.
	S3Endpoint  string `json:"s3Endpoint,omitempty"`
	S3AccessKey string `json:"s3AccessKey,omitempty"`
	S3SecretKey string `json:"s3SecretKey,omitempty"`
	S3Region    string `json:"s3Region,omitempty"`
	// XDSAddress is the host:port where istiod serves xDS in plain text, empty if there is none.
	XDSAddress string `json:"xdsAddress,omitempty"`
	// PrometheusURL is empty if there is none.
	PrometheusURL string `json:"prometheusURL,omitempty"`
	// HostIP is where the API server and the pods reach processes of this machine.
	HostIP string `json:"hostIP"`
	// NodeIP is the node's address, which this machine reaches; empty without a node.
	NodeIP string `json:"nodeIP,omitempty"`
	// Pid is the first process of the node's namespaces, for nsenter; 0 without a node.
	Pid int `json:"pid,omitempty"`
}

const stateName = "state.json"

func (in *instance) save(s State) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the testbed's state: %w", err)
	}
	fresh := in.path(stateName + ".new")
	if err := os.WriteFile(fresh, raw, 0o600); err != nil {
		return fmt.Errorf("writing the testbed's state: %w", err)
	}
	if err := os.Rename(fresh, in.path(stateName)); err != nil {
		return fmt.Errorf("writing the testbed's state: %w", err)
	}
	return nil
}

// List returns the testbeds of this user's cache folder that are ready and alive, oldest slot first.
func List() ([]State, error) {
	folders, err := runFolders()
	if err != nil {
		return nil, err
	}
	var states []State
	for _, dir := range folders {
		raw, err := os.ReadFile(filepath.Join(dir, stateName))
		if errors.Is(err, os.ErrNotExist) || !keep.Alive(dir) {
			continue
		}
		var s State
		if err == nil {
			err = json.Unmarshal(raw, &s)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the state of testbed %s: %w", filepath.Base(dir), err)
		}
		states = append(states, s)
	}
	return states, nil
}

// Down ends the testbed with this id, whoever owns it, and returns when nothing of it is left.
func Down(ctx context.Context, id string) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	if id == "" || id != filepath.Base(id) {
		return fmt.Errorf("%q is no testbed's id", id)
	}
	return keep.Terminate(ctx, filepath.Join(runDir(cache), id))
}

// Clean removes what dead testbeds left behind: processes, cgroups and folders. It leaves living ones alone.
func Clean(ctx context.Context) error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	turn, err := lockFile(ctx, filepath.Join(cache, "run.lock"), func() {})
	if err != nil {
		return err
	}
	defer func() { _ = turn.Close() }()
	return cleanDead(runDir(cache))
}

func cleanDead(run string) error {
	entries, err := os.ReadDir(run)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listing testbeds: %w", err)
	}
	var failed error
	for _, e := range entries {
		if err := keep.Clean(filepath.Join(run, e.Name())); err != nil && !errors.Is(err, keep.ErrAlive) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

func runFolders() ([]string, error) {
	cache, err := cacheDir()
	if err != nil {
		return nil, err
	}
	folders, err := filepath.Glob(filepath.Join(runDir(cache), "*-*"))
	if err != nil {
		return nil, fmt.Errorf("listing testbeds: %w", err)
	}
	slices.Sort(folders)
	return folders, nil
}
