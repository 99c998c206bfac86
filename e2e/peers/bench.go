package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// bench is what all measurements share. close must be called.
type bench struct {
	dir         string
	self        string // this program, for its child processes
	ports       *ports
	certificate certificate
	backend     *process
	address     string // the backend's
	idle        int    // how many connections idle in the scenarios about them
	measured    int
}

// newBench starts the backend.
func newBench(ctx context.Context, dir string) (*bench, error) {
	b := &bench{dir: dir, ports: newPorts(), idle: idleConnections}
	var err error
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.certificate, err = newCertificate(dir); err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	if b.address, err = b.ports.take(); err != nil {
		return nil, err
	}
	if b.backend, err = start(dir, "backend", []string{b.self, backendRole, b.address}); err != nil {
		return nil, err
	}
	if err := b.backend.listening(ctx, b.address); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bench) close() { b.backend.kill() }

// measure starts a proxy, measures it in one scenario and ends it. A proxy that cannot be measured is told of by Failure.
func (b *bench) measure(ctx context.Context, p peer, s scenario, length time.Duration) measurement {
	m := measurement{Scenario: s.name, Peer: p.name}
	var err error
	if m.result, err = b.try(ctx, p, s, length); err != nil {
		m.Failure = err.Error()
	}
	return m
}

func (b *bench) try(ctx context.Context, p peer, s scenario, length time.Duration) (result, error) {
	b.measured++
	dir := filepath.Join(b.dir, fmt.Sprint(b.measured))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	listen, err := b.ports.take()
	if err != nil {
		return result{}, err
	}
	argv, err := p.command(setup{
		Dir: dir, Listen: listen, Backend: b.address, Workers: runtime.NumCPU(), Root: os.Geteuid() == 0,
		TLS: s.tls, Routes: s.routes, Policies: s.policies, certificate: b.certificate,
	})
	if err != nil {
		return result{}, fmt.Errorf("configure %s: %w", p.name, err)
	}
	proxy, err := start(dir, p.name, argv)
	if err != nil {
		return result{}, err
	}
	defer proxy.kill()
	if err := proxy.listening(ctx, listen); err != nil {
		return result{}, err
	}
	if err := check(ctx, s, listen, b.certificate.roots); err != nil {
		return result{}, fmt.Errorf("wrong answers: %w", err)
	}
	return b.load(ctx, job{
		Scenario: s.name, Address: listen, PID: proxy.cmd.Process.Pid, Root: os.Getpid(), Seconds: length.Seconds(), Idle: b.idle,
	})
}

// load does a job in a process of its own.
func (b *bench) load(ctx context.Context, j job) (r result, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(j.Seconds*float64(time.Second))+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.self, loadRole)
	cmd.Env = bareEnvironment(b.dir)
	cmd.SysProcAttr = ownGroup()
	cmd.Cancel = func() error { return syscall.Kill(cmd.Process.Pid, syscall.SIGKILL) }
	in, err := json.Marshal(j)
	if err != nil {
		return r, err
	}
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return r, fmt.Errorf("load: %w\n%s", err, exit.Stderr)
	}
	if err != nil {
		return r, fmt.Errorf("load: %w", err)
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("read the load's result: %w", err)
	}
	return r, nil
}
