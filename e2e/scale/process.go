package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// process is a program that was started.
type process struct {
	name  string
	cmd   *exec.Cmd
	out   string        // the file that it writes standard output and standard error to
	ended chan struct{} // closed when it has ended
}

// start runs a program with dir as its working directory and home. kill must be called.
func start(dir, name string, argv ...string) (*process, error) {
	p := &process{name: name, out: filepath.Join(dir, name+".out"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Dir = dir
	// A user's PYSERVE_ and GO variables are kept from what is measured.
	p.cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
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

// kill is kill -9. It returns when the process has ended.
func (p *process) kill() {
	p.cmd.Process.Kill() // fails only where it has ended already
	<-p.ended
}

// readyTime is how long a program may take to become ready: with a large history on a busy machine that is seconds.
const readyTime = 60 * time.Second

// ready waits until the process says on its admin address that it is.
func (p *process) ready(ctx context.Context, admin string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		if answersOK(ctx, "http://"+admin+"/readyz") {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s has ended: %v\n%s", p.name, p.cmd.ProcessState, p.said())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, ctx.Err(), p.said())
		case <-tick.C:
		}
	}
}

func answersOK(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	request.Close = true
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// said is the end of what the process wrote.
func (p *process) said() string {
	text, err := os.ReadFile(p.out)
	if err != nil {
		return err.Error()
	}
	const most = 4 << 10
	return string(text[max(0, len(text)-most):])
}

// descriptorsPerNode are this process's for one light node and control's for its stream.
const descriptorsPerNode = 1

// enoughDescriptors is an error where a process could not hold so many streams. Go programs raise their limit to the hard
// one by themselves.
func enoughDescriptors(nodes int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of descriptors: %w", err)
	}
	if wanted := uint64(nodes*descriptorsPerNode + 200); uint64(limit.Max) < wanted {
		return fmt.Errorf("a process may have %d descriptors, and %d nodes take %d: raise the hard limit (ulimit -Hn), or choose by -nodes", limit.Max, nodes, wanted)
	}
	return nil
}

// ports hands out free ports of 127.0.0.1. They lie below those that the kernel takes client ports from, so that no
// connection sits on one before its process has bound it.
type ports struct{ last int }

const firstPort, lastPort = 12_000, 32_000

func newPorts() *ports { return &ports{firstPort + rand.N(lastPort-firstPort)} }

// take gives an address whose port is free for TCP and UDP.
func (p *ports) take() (string, error) {
	for range 1000 {
		if p.last++; p.last > lastPort {
			p.last = firstPort
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(p.last))
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		l.Close()
		if u, err := net.ListenPacket("udp", address); err == nil {
			return address, u.Close()
		}
	}
	return "", errors.New("no port of 127.0.0.1 is free")
}
