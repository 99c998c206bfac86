package config

import (
	"net"
	"strconv"

	resourcev1 "github.com/pyserve/pyserve/proto/pyserve/resource/v1"
)

// Kind names a sort of resource, in manifests, changes and logs.
type Kind string

// The kinds there are.
const (
	KindListener    Kind = "listener"
	KindCertificate Kind = "certificate"
	KindRoute       Kind = "route"
	KindPool        Kind = "pool"
)

// ListenerName is the name of the one listener that a document makes.
const ListenerName = "default"

// CertificateName is the name of the certificate that a document's ssl section makes.
const CertificateName = "default"

// Resources are what a document means: typed, validated, every default filled in but timeouts ([TimeoutsOf]). They are not changed once made, and
// so may be read from anywhere. The zero value is an empty cluster without a listener, which no document makes.
type Resources struct {
	Listener     *resourcev1.Listener
	Certificates map[string]*resourcev1.Certificate
	Routes       map[string]*resourcev1.Route
	Pools        map[string]*resourcev1.Pool
}

// BackendAddress gives a backend's host:port, an IPv6 address in brackets: the name it has in status and logs.
func BackendAddress(b *resourcev1.Backend) string {
	return net.JoinHostPort(b.GetHost(), strconv.FormatUint(uint64(b.GetPort()), 10))
}
