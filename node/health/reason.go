package health

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/pyserve/pyserve/node/upstream"
)

// maxReason bounds, in bytes, words that come from elsewhere.
const maxReason = 160

// failure is an error whose words are the reason.
type failure string

func (f failure) Error() string { return string(f) }

// reasonFor puts an error into words for the person who asks why a backend gets no traffic. The address is not among them:
// it stands beside the reason wherever that is shown. A host name that cannot be resolved is, to be seen as what it is.
func reasonFor(err error, now time.Time) string {
	var (
		timeout  net.Error
		unknown  *upstream.ResolveError
		protocol textproto.ProtocolError
	)
	switch {
	case errors.As(err, &unknown):
		return clip(unknown.Error())
	case errors.As(err, &timeout) && timeout.Timeout():
		return "connection timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case errors.As(err, &protocol), strings.HasPrefix(err.Error(), "malformed "):
		return "the answer is not HTTP"
	}
	if reason := certificateReason(err, now); reason != "" {
		return reason
	}
	return clip(innermost(err))
}

// exhausted says of an error that this machine has run out of something, file descriptors above all, so that a probe says nothing of
// the backend. That there is no address to connect from does: it may be one of a family that this machine does not have, and who asks
// why has to be told.
func exhausted(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// certificateReason is for the failures of a TLS handshake, nothing for others.
func certificateReason(err error, now time.Time) string {
	var (
		notTLS    tls.RecordHeaderError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &notTLS):
		return "the backend does not speak TLS"
	case errors.As(err, &authority):
		return "certificate signed by unknown authority"
	case errors.As(err, &name):
		return fmt.Sprintf("certificate is not for %s", clip(name.Host))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		if now.Before(invalid.Cert.NotBefore) {
			return "certificate is not valid before " + invalid.Cert.NotBefore.UTC().Format(time.RFC3339)
		}
		return "certificate expired at " + invalid.Cert.NotAfter.UTC().Format(time.RFC3339)
	}
	return ""
}

// innermost is what the last of wrapped errors says, without the layers of addresses and operations above it.
func innermost(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// clip keeps a reason on one line of bearable length, and in characters that terminals take for text.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxReason {
		s = shorten(s, maxReason) + "…"
	}
	return s
}

// shorten cuts s down to n bytes, and a character that would be cut apart as a whole.
func shorten(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "") }
