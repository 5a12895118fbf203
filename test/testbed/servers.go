// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	s3AccessKey = "outrigger" // Of the S3 server's administrator.
	s3Region    = "us-east-1"
)

func (t *Testbed) startS3(ctx context.Context) error {
	if err := os.Mkdir(t.path("s3"), 0o755); err != nil {
		return fmt.Errorf("making the S3 server's folder: %w", err)
	}
	secret := rand.Text()
	args := []string{
		"--port", net.JoinHostPort(t.bind(), strconv.Itoa(t.port(portS3))), "--region", s3Region,
		"--health", "/healthz", "--keep-alive", "--quiet", "posix", t.path("s3"),
	}
	err := t.launch(ctx, component{
		name: s3Program.name, path: t.bin.programs[s3Program.name], args: args,
		env:   []string{"ROOT_ACCESS_KEY=" + s3AccessKey, "ROOT_SECRET_KEY=" + secret},
		ready: httpReady(direct(), "http://"+t.hostPort(portS3)+"/healthz"),
	})
	if err != nil {
		return err
	}
	t.set(func(s *State) {
		s.S3Endpoint, s.S3Region = "http://"+t.hostPort(portS3), s3Region
		s.S3AccessKey, s.S3SecretKey = s3AccessKey, secret
	})
	return nil
}

// StartMemcached starts Debian's memcached with these further arguments, as in -m 64, and returns its address, which
// this machine and the testbed's pods reach. It ends with the testbed.
func (t *Testbed) StartMemcached(ctx context.Context, args ...string) (string, error) {
	path, err := debianProgram("memcached")
	if err != nil {
		return "", err
	}
	port, err := t.extraPort()
	if err != nil {
		return "", err
	}
	address := net.JoinHostPort(t.address(), strconv.Itoa(port))
	err = t.launch(ctx, component{
		name: "memcached-" + strconv.Itoa(port), path: path,
		// Root must name a user; it is not used otherwise.
		args: append([]string{"-u", "nobody", "-l", t.bind(), "-p", strconv.Itoa(port), "-U", "0"}, args...),
		ready: func(ctx context.Context) error {
			return askMemcached(ctx, address)
		},
	})
	if err != nil {
		return "", err
	}
	return address, nil
}

// StopMemcached kills the memcached that [Testbed.StartMemcached] returned this address for, with all it holds.
func (t *Testbed) StopMemcached(ctx context.Context, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("stopping memcached: %w", err)
	}
	name := "memcached-" + port
	if err := t.client.Signal(ctx, name, signalKill); err != nil {
		return err
	}
	// The keeper reports the kill as an error, which is what was asked for.
	_ = t.client.Wait(ctx, name)
	return nil
}

func askMemcached(ctx context.Context, address string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("asking memcached: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return fmt.Errorf("asking memcached: %w", err)
	}
	if _, err := conn.Write([]byte("version\r\n")); err != nil {
		return fmt.Errorf("asking memcached: %w", err)
	}
	answer := make([]byte, 8)
	if _, err := conn.Read(answer); err != nil || !strings.HasPrefix(string(answer), "VERSION") {
		return fmt.Errorf("asking memcached: answer %q: %w", answer, err)
	}
	return nil
}

// StartPrometheus starts Debian's Prometheus with this configuration and returns its URL. In the text, $KUBECONFIG
// stands for the path of the administrator's kubeconfig. A testbed has one at most; it ends with the testbed.
func (t *Testbed) StartPrometheus(ctx context.Context, config string) (string, error) {
	path, err := debianProgram("prometheus")
	if err != nil {
		return "", err
	}
	file := t.path("prometheus.yaml")
	config = strings.ReplaceAll(config, "$KUBECONFIG", t.state.Kubeconfig)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return "", fmt.Errorf("writing Prometheus' configuration: %w", err)
	}
	url := "http://" + t.hostPort(portPrometheus)
	err = t.launch(ctx, component{
		name: "prometheus", path: path,
		args: []string{
			"--config.file=" + file, "--storage.tsdb.path=" + t.path("prometheus"),
			"--web.listen-address=" + net.JoinHostPort(t.bind(), strconv.Itoa(t.port(portPrometheus))),
			"--web.enable-lifecycle", "--log.level=warn",
		},
		ready: httpReady(direct(), url+"/-/ready"),
	})
	if err != nil {
		return "", err
	}
	t.set(func(s *State) { s.PrometheusURL = url })
	return url, t.saveState()
}

// extraPort returns a port of the slot that no part has.
func (t *Testbed) extraPort() (int, error) {
	number := portMemcached + int(t.extras.Add(1)) - 1
	if number >= portsPerSlot {
		return 0, errors.New("all ports of the testbed are taken: a testbed runs two dozen servers at most")
	}
	return t.port(number), nil
}

// debianProgram finds a program that comes as a Debian package.
func debianProgram(name string) (string, error) {
	for _, path := range []string{"/usr/bin/" + name, "/usr/sbin/" + name} {
		if exists(path) {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s not found: run make deps", name)
	}
	return path, nil
}
