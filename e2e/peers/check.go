package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// check asks a proxy once for what will be measured, by net/http, and for what the backend sees: a proxy that gives wrong
// answers, or does less work than the others, is not measured.
func check(ctx context.Context, s scenario, address string, roots *x509.CertPool) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		TLSClientConfig:    &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2:  s.http2,
		DisableCompression: true,
	}
	defer transport.CloseIdleConnections()
	if err := s.checkAnswer(ctx, transport, address); err != nil {
		return err
	}
	seen, err := s.ask(ctx, transport, exchange{method: http.MethodGet, path: seenPath})
	if err != nil {
		return err
	}
	for _, want := range []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: " + s.scheme(), "X-Forwarded-Host: " + hostName} {
		if !bytes.Contains(bytes.ToLower(seen), bytes.ToLower([]byte("\r\n"+want+"\r\n"))) {
			return fmt.Errorf("the backend does not see %q, but\n%s", want, seen)
		}
	}
	return nil
}

// checkAnswer makes the scenario's own exchange.
func (s scenario) checkAnswer(ctx context.Context, transport *http.Transport, address string) error {
	if s.path == echoPath {
		conn, err := openWebSocket(target{address: address, deadline: time.Now().Add(stalled)}, s.exchange)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	body, err := s.ask(ctx, transport, s.exchange)
	if err == nil && !bytes.Equal(body, s.want) {
		err = fmt.Errorf("%s gives a wrong body of %d bytes", s.path, len(body))
	}
	return err
}

func (s scenario) scheme() string {
	if s.tls {
		return "https"
	}
	return "http"
}

// ask makes one exchange and gives the body of its answer.
func (s scenario) ask(ctx context.Context, transport *http.Transport, e exchange) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, e.method, s.scheme()+"://"+hostName+e.path, bytes.NewReader(e.body))
	if err != nil {
		return nil, err
	}
	for _, f := range e.header {
		request.Header.Set(f.name, f.value)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: read the body: %w", e.path, err)
	}
	if response.StatusCode != http.StatusOK || (response.ProtoMajor == 2) != s.http2 {
		return nil, fmt.Errorf("%s gives %s %s", e.path, response.Proto, response.Status)
	}
	return body, nil
}
