package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// Resolver finds the address of a host by its name.
type Resolver func(ctx context.Context, host string) (netip.Addr, error)

// lookUp asks the system's resolver. Of several addresses it takes an IPv4 one, which each of these file systems can
// use in each of the places an address stands in.
func lookUp(ctx context.Context, host string) (netip.Addr, error) {
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, addr := range list {
		if addr.Unmap().Is4() {
			return addr.Unmap(), nil
		}
	}
	if len(list) == 0 {
		return netip.Addr{}, errors.New("no address for host " + host)
	}
	return list[0], nil
}

// source returns what to hand to the kernel, which knows no host names: those of the options are replaced by the
// addresses that they have now.
func (o *options) source(ctx context.Context, resolve Resolver) (device, opts string, err error) {
	device, opts = o.MountDevice, o.MountOpts
	switch o.MountType {
	case "nfs", "nfs4", "cifs":
	default:
		return device, opts, nil
	}
	list := strings.Split(opts, ",")
	for i, option := range list {
		host, given := strings.CutPrefix(option, "addr=")
		if !given || host == "" {
			continue
		}
		addr, err := address(ctx, resolve, host)
		if err != nil {
			return "", "", err
		}
		list[i] = "addr=" + addr
		return device, strings.Join(list, ","), nil
	}
	if o.MountType != "cifs" {
		return device, opts, nil
	}
	parsed, err := url.Parse(device)
	if err != nil {
		return "", "", fmt.Errorf("error parsing mount device url: %w", err)
	}
	host := parsed.Hostname()
	if host == "" {
		return device, opts, nil
	}
	addr, err := address(ctx, resolve, host)
	if err != nil {
		return "", "", err
	}
	before := hostAt(device)
	return device[:before] + strings.Replace(device[before:], host, addr, 1), opts, nil
}

// hostAt returns where the host of a URL begins: after the user, whose name may be that of the host too.
func hostAt(device string) int {
	_, rest, _ := strings.Cut(device, "//")
	authority, _, _ := strings.Cut(rest, "/")
	return len(device) - len(rest) + strings.LastIndex(authority, "@") + 1
}

// address returns the address of a host, which may be one itself.
func address(ctx context.Context, resolve Resolver, host string) (string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return host, nil
	}
	addr, err := resolve(ctx, host)
	if err != nil {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return addr.String(), nil
}
