package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// lookupWait bounds the look-up of a host name.
const lookupWait = 3 * time.Second

// checkHostPort tells why a text is not an address that can be dialled, or nil.
func checkHostPort(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if host == "" {
		return fmt.Errorf("%q has no host", address)
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return fmt.Errorf("%q has no port of 1 to 65535", address)
	}
	return nil
}

// checkBind names the field that is wrong.
func checkBind(bind, advertise string) error {
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return fmt.Errorf("option Bind: %q is not host:port", bind)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("option Bind: %q has no port of 0 to 65535", bind)
	}
	if advertise == "" {
		if unspecified(host) {
			return fmt.Errorf("option Advertise: is needed, since Bind %q is no address that others can dial", bind)
		}
		return nil
	}
	if _, _, err := net.SplitHostPort(advertise); err == nil {
		return fmt.Errorf("option Advertise: %q has a port; it is Bind's", advertise)
	}
	if unspecified(advertise) {
		return fmt.Errorf("option Advertise: %q is no address that others can dial", advertise)
	}
	return nil
}

func unspecified(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || err == nil && addr.IsUnspecified()
}

// resolveListen turns the hosts of Bind and Advertise into addresses: memberlist would listen everywhere on a name, and
// tells others nothing but addresses.
func resolveListen(o Options) (bind netip.AddrPort, advertise netip.Addr, err error) {
	if o.Transport != nil {
		return netip.AddrPort{}, netip.Addr{}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupWait)
	defer cancel()
	host, port, err := net.SplitHostPort(o.Bind)
	if err != nil {
		return bind, advertise, fmt.Errorf("cannot listen on %s: %w", o.Bind, err)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return bind, advertise, fmt.Errorf("cannot listen on %s: %w", o.Bind, err)
	}
	listen := []netip.Addr{netip.IPv4Unspecified()}
	if host != "" {
		if listen, err = lookup(ctx, host); err != nil {
			return bind, advertise, fmt.Errorf("cannot listen on %s: %w", o.Bind, err)
		}
	}
	bind = netip.AddrPortFrom(listen[0], uint16(number))
	if o.Advertise == "" {
		return bind, bind.Addr(), nil
	}
	dial, err := lookup(ctx, o.Advertise)
	if err != nil {
		return bind, advertise, fmt.Errorf("cannot advertise %s: %w", o.Advertise, err)
	}
	return bind, dial[0], nil
}

// lookup gives the addresses of a host, at least one, IPv4 first. An address stands for itself.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("cannot look up %s: %w", host, err)
	}
	if len(addrs) == 0 {
		return nil, errors.New("no address is known for " + host)
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	slices.SortStableFunc(addrs, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return addrs, nil
}
