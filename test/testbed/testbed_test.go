// SPDX-License-Identifier: Apache-2.0

package testbed_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"serverless.xyz/outrigger/test/testbed"
)

// ownerVariable makes the test binary start a testbed, print its state and wait to be killed.
const ownerVariable = "TESTBED_TEST_OWNER"

// probeVariable makes the test binary a program for pods; its value says which.
const probeVariable = "TESTBED_TEST_PROBE"

func TestMain(m *testing.M) {
	if program := os.Getenv(probeVariable); program != "" {
		probe(program, os.Args[1:])
	}
	if size := os.Getenv(ownerVariable); size != "" {
		ownUntilKilled(size)
	}
	os.Exit(m.Run())
}

func ownUntilKilled(name string) {
	size, err := testbed.ParseSize(name)
	if err != nil {
		panic(err)
	}
	tb, err := testbed.Start(context.Background(), testbed.Options{Size: size})
	if err != nil {
		panic(err)
	}
	fmt.Println(tb.State().Folder)
	if os.Getenv("TESTBED_TEST_PANIC") != "" {
		panic("as asked")
	}
	select {}
}

// startOwner starts a testbed in another process, returns that process and the testbed's folder.
func startOwner(t *testing.T, env ...string) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatalf("the owner ended without a testbed: %v", cmd.Wait())
	}
	return cmd, lines.Text()
}

// processesOf returns the command lines of living processes that belong to the testbed in the folder.
func processesOf(t *testing.T, folder string) []string {
	t.Helper()
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range environs {
		env, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(env), "OUTRIGGER_TESTBED="+filepath.Base(folder)+"\x00") {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && len(line) > 0 {
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

func awaitGone(t *testing.T, folder string) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		left := processesOf(t, folder)
		_, err := os.Stat(folder)
		if len(left) == 0 && os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s folder: %v, processes: %q", within, err, left)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAPIServesAndStopsWithoutTrace(t *testing.T) {
	tb, err := testbed.Start(t.Context(), testbed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := len(processesOf(t, tb.State().Folder)); got != 3 {
		t.Errorf("%d processes, want keeper, etcd and API server: %q", got, processesOf(t, tb.State().Folder))
	}
	client := kubernetes.NewForConfigOrDie(tb.Config())
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if _, err := client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Errorf("creating a pod: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), tb.Kubectl(), "--kubeconfig", tb.Kubeconfig(), "get", "pods").Output()
	if err != nil || !strings.Contains(string(out), "p ") {
		t.Errorf("kubectl get pods: %v\n%s", err, out)
	}
	if err := tb.Stop(); err != nil {
		t.Fatal(err)
	}
	if left := processesOf(t, tb.State().Folder); len(left) > 0 {
		t.Errorf("processes left: %q", left)
	}
	if _, err := os.Stat(tb.State().Folder); !os.IsNotExist(err) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestTestbedEndsWithItsOwner(t *testing.T) {
	for name, tc := range map[string]struct {
		env    []string
		signal syscall.Signal
	}{
		"owner killed with signal 9": {signal: syscall.SIGKILL},
		"owner interrupted":          {signal: syscall.SIGINT},
		"owner terminated":           {signal: syscall.SIGTERM},
		"owner panics":               {env: []string{"TESTBED_TEST_PANIC=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			owner, folder := startOwner(t, append(tc.env, ownerVariable+"=api")...)
			if tc.signal != 0 {
				if err := owner.Process.Signal(tc.signal); err != nil {
					t.Fatal(err)
				}
			}
			if err := owner.Wait(); err == nil {
				t.Error("the owner ended well, want an end by force")
			}
			awaitGone(t, folder)
		})
	}
}

func TestCleanRemovesWhatAKilledKeeperLeft(t *testing.T) {
	alive := testbed.Shared(t, testbed.API)
	_, folder := startOwner(t, ownerVariable+"=api")
	raw, err := os.ReadFile(filepath.Join(folder, "keeper.pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(raw), &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(within)
	for {
		if err := testbed.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(folder); os.IsNotExist(err) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("folder %s is left after %s", folder, within)
		}
		time.Sleep(20 * time.Millisecond)
	}
	awaitGone(t, folder)
	if _, err := kubernetes.NewForConfigOrDie(alive.Config()).CoreV1().Namespaces().
		Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
		t.Errorf("the living testbed was disturbed: %v", err)
	}
}

func TestTestbedsKeepApart(t *testing.T) {
	first := testbed.Shared(t, testbed.API)
	second, err := testbed.Start(t.Context(), testbed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
	}()
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: apart}\n"
	if err := second.Apply(t.Context(), text); err != nil {
		t.Fatal(err)
	}
	_, err = kubernetes.NewForConfigOrDie(first.Config()).CoreV1().ConfigMaps("default").
		Get(t.Context(), "apart", metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("the other testbed's object: %v, want not found", err)
	}
	states, err := testbed.List()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, s := range states {
		ids[s.ID] = true
	}
	if !ids[first.State().ID] || !ids[second.State().ID] {
		t.Errorf("List gives %v, want %s and %s in it", ids, first.State().ID, second.State().ID)
	}
}

func TestDetachedTestbedLivesUntilDown(t *testing.T) {
	tb, err := testbed.Start(t.Context(), testbed.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tb.Detach(); err != nil {
		t.Fatal(err)
	}
	if err := testbed.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := kubernetes.NewForConfigOrDie(tb.Config()).ServerVersion(); err != nil {
		t.Errorf("after Detach and Clean: %v", err)
	}
	if err := testbed.Down(t.Context(), tb.State().ID); err != nil {
		t.Fatal(err)
	}
	awaitGone(t, tb.State().Folder)
}
