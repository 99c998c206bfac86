package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// newRegistry makes a registry that knows the process; it is nobody's default, so that several daemons live in one
// process.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// admin is a daemon's HTTP side: whether it lives, whether it is ready, its metrics, and a page if it has one.
type admin struct {
	server *http.Server
	done   chan struct{}
}

// startAdmin serves on a listener that it takes over. notReady gives the reason why the daemon is not ready; empty: it
// is. page may be nil.
func startAdmin(l net.Listener, registry *prometheus.Registry, notReady func() string, page http.Handler, logger *slog.Logger) *admin {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if reason := notReady(); reason != "" {
			http.Error(w, reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	if page != nil {
		mux.Handle("/", page)
	}
	a := &admin{
		server: &http.Server{
			Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(a.done)
		if err := a.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("the admin address stopped answering", "address", l.Addr().String(), "error", err)
		}
	}()
	return a
}

func (a *admin) stop(context.Context) error {
	err := a.server.Close()
	<-a.done
	return err
}

// listen opens a TCP address that a flag names.
func listen(flag, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--%s: cannot listen on %s: %w", flag, address, rootCause(err))
	}
	return l, nil
}

// rootCause takes the "listen tcp 127.0.0.1:80: bind: " off an error of package net.
func rootCause(err error) error {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}
