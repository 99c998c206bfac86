package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// process is a program that was started, with all that it starts itself: they are one process group.
type process struct {
	name  string
	cmd   *exec.Cmd
	out   string        // the file that it writes standard output and standard error to
	ended chan struct{} // closed when it has ended
}

// start runs a program with dir as its working directory and home. kill must be called.
func start(dir, name string, argv []string) (*process, error) {
	p := &process{name: name, out: filepath.Join(dir, name+".out"), ended: make(chan struct{})}
	out, err := os.Create(p.out)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = dir
	p.cmd.Env = bareEnvironment(dir)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = ownGroup()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.ended)
		p.cmd.Wait()
	}()
	return p, nil
}

// bareEnvironment keeps a user's PYSERVE_ and GO variables from the measured programs.
func bareEnvironment(home string) []string {
	return []string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}
}

// descriptorLimit is how many descriptors a process may have: the hard limit, which Go programs, nginx and HAProxy raise
// theirs to.
func descriptorLimit() (uint64, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit of descriptors: %w", err)
	}
	return uint64(limit.Max), nil
}

// kill ends the process and its children at once, and returns when the process itself has ended.
func (p *process) kill() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // fails only where all have ended already
	<-p.ended
}

// listening waits until the process takes connections.
func (p *process) listening(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", address); err == nil {
			return conn.Close()
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s has ended: %v\n%s", p.name, p.cmd.ProcessState, p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s does not listen on %s: %w\n%s", p.name, address, ctx.Err(), p.said())
		case <-tick.C:
		}
	}
}

// said is the end of what the process wrote.
func (p *process) said() string {
	text, err := os.ReadFile(p.out)
	if err != nil {
		return err.Error()
	}
	const most = 2 << 10
	return string(text[max(0, len(text)-most):])
}

// ports hands out free ports of 127.0.0.1. They lie below those that the kernel takes client ports from, so that no
// connection of the load sits on one before its process has bound it.
type ports struct{ last int }

const firstPort, lastPort = 12_000, 32_000

func newPorts() *ports { return &ports{firstPort + rand.N(lastPort-firstPort)} }

// take gives an address with a free port.
func (p *ports) take() (string, error) {
	for range 1000 {
		if p.last++; p.last > lastPort {
			p.last = firstPort
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(p.last))
		if l, err := net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", errors.New("no port of 127.0.0.1 is free")
}
