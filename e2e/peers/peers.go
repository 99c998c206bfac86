package main

import (
	"context"
	"debug/buildinfo"
	"embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"text/template"
)

// pyservePeer is the one that all this is about; the names of the others that its figures are compared with.
const (
	pyservePeer = "pyserve"
	beforePeer  = "before" // PyServe in another version
	nginxPeer   = "nginx"
	haproxyPeer = "haproxy"
)

// caddyIsMissing says how to get what no distribution has in this version.
const caddyIsMissing = "Caddy is left out: it is not on PATH (go install github.com/caddyserver/caddy/v2/cmd/caddy@latest)"

// peer is a proxy that takes part.
type peer struct {
	name, version string
	// command gives what to run, after it has written the configuration.
	command func(s setup) (argv []string, err error)
}

// setup is what a proxy is to do; the templates in configs are filled from it.
type setup struct {
	// A folder of its own.
	Dir string
	// host:port.
	Listen, Backend string
	Workers         int
	Root            bool // this is run by root
	TLS             bool
	// How many routes PyServe has beside the one for everything. The first is the small GET's; the others lead to the same
	// backend and are never asked for.
	Routes int
	// Balance by requests under way, change headers, and limit how many requests a client may make in a second: more than it
	// makes here.
	Policies bool
	certificate
}

func (s setup) ListenHost() string  { host, _, _ := net.SplitHostPort(s.Listen); return host }
func (s setup) ListenPort() string  { _, port, _ := net.SplitHostPort(s.Listen); return port }
func (s setup) BackendHost() string { host, _, _ := net.SplitHostPort(s.Backend); return host }
func (s setup) BackendPort() string { _, port, _ := net.SplitHostPort(s.Backend); return port }

//go:embed configs
var configs embed.FS

// configure fills the template for a file and writes it into the proxy's folder.
func (s setup) configure(name string) (file string, err error) {
	t, err := template.ParseFS(configs, "configs/"+name+".tmpl")
	if err != nil {
		return "", err
	}
	var text strings.Builder
	if err := t.Execute(&text, s); err != nil {
		return "", err
	}
	file = filepath.Join(s.Dir, name)
	return file, os.WriteFile(file, []byte(text.String()), 0o600)
}

// findPeers gives the proxies whose names match, and a line for each that is not on this machine. PyServe is built into
// dir.
func findPeers(ctx context.Context, dir string, names *regexp.Regexp) (found []peer, missing []string, err error) {
	if names.MatchString(nginxPeer) {
		if path, err := lookPath("nginx"); err != nil {
			missing = append(missing, "nginx is left out: it is not on PATH (apt-get install nginx)")
		} else {
			found = append(found, nginx(path, firstLine(ctx, path, "-v")))
		}
	}
	if names.MatchString(haproxyPeer) {
		if path, err := lookPath("haproxy"); err != nil {
			missing = append(missing, "HAProxy is left out: it is not on PATH (apt-get install haproxy)")
		} else {
			found = append(found, haproxy(path, firstLine(ctx, path, "-v")))
		}
	}
	if name := "caddy"; names.MatchString(name) {
		if path, err := lookPath(name); err != nil {
			missing = append(missing, caddyIsMissing)
		} else {
			found = append(found, caddy(path, name, caddyVersion(ctx, path)))
		}
	}
	if name := "reverseproxy"; names.MatchString(name) {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		found = append(found, peer{name, "httputil.ReverseProxy of " + runtime.Version(), func(s setup) ([]string, error) {
			argv := []string{self, reverseProxyRole, s.Listen, s.Backend}
			if s.TLS {
				argv = append(argv, s.CertFile, s.KeyFile)
			}
			return argv, nil
		}})
	}
	if names.MatchString(pyservePeer) {
		path, err := buildPyServe(ctx, dir)
		if err != nil {
			return nil, nil, err
		}
		found = append(found, pyserve(pyservePeer, path, firstLine(ctx, path, "version")))
	}
	return found, missing, nil
}

// lookPath finds a daemon also where users who are not root do not look.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// firstLine is what a program says of its version.
func firstLine(ctx context.Context, program string, args ...string) string {
	text, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

func buildPyServe(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "pyserve")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/pyserve/pyserve/cmd/pyserve")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build pyserve: %w\n%s", err, out)
	}
	return path, nil
}

func nginx(path, version string) peer {
	return peer{nginxPeer, version, func(s setup) ([]string, error) {
		file, err := s.configure("nginx.conf")
		return []string{path, "-p", s.Dir, "-e", "stderr", "-c", file}, err
	}}
}

func haproxy(path, version string) peer {
	return peer{haproxyPeer, version, func(s setup) ([]string, error) {
		file, err := s.configure("haproxy.cfg")
		return []string{path, "-db", "-f", file}, err
	}}
}

// caddyVersion is what Caddy says, or, since one that was installed by go install does not know, what Go knows of it.
func caddyVersion(ctx context.Context, path string) string {
	version := firstLine(ctx, path, "version")
	if info, err := buildinfo.ReadFile(path); err == nil && version == "unknown" {
		version = info.Main.Version
	}
	return "Caddy " + version
}

func caddy(path, name, version string) peer {
	return peer{name, version, func(s setup) ([]string, error) {
		file, err := s.configure("Caddyfile")
		return []string{path, "run", "--adapter", "caddyfile", "--config", file}, err
	}}
}

func pyserve(name, path, version string) peer {
	return peer{name, version, func(s setup) ([]string, error) {
		file, err := s.configure("pyserve.yaml")
		return []string{path, "node", "--name", "bench", "--config", file, "--listen", s.Listen, "--admin", "127.0.0.1:0"}, err
	}}
}
