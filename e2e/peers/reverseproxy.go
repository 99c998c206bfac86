package main

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// runReverseProxy is what a Go programmer writes who wants httputil.ReverseProxy to be fast: connections to the backend
// are kept, and buffers used again.
func runReverseProxy(args []string) error {
	if len(args) != 2 && len(args) != 4 {
		return errors.New("reverseproxy LISTEN BACKEND [CERTIFICATE KEY]")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 1024
	transport.DisableCompression = true
	backend := &url.URL{Scheme: "http", Host: args[1]}
	quiet := log.New(io.Discard, "", 0)
	server := &http.Server{Addr: args[0], ErrorLog: quiet, Handler: &httputil.ReverseProxy{
		Transport:  transport,
		BufferPool: &buffers{},
		ErrorLog:   quiet,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(backend)
			r.SetXForwarded()
		},
	}}
	if len(args) == 2 {
		return server.ListenAndServe()
	}
	return server.ListenAndServeTLS(args[2], args[3])
}

// buffers is an httputil.BufferPool.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[32 << 10]byte); ok {
		return buf[:]
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put((*[32 << 10]byte)(buf)) }
