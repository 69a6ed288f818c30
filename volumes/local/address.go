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
		if list[i], err = replaceHost(ctx, resolve, option, host); err != nil {
			return "", "", err
		}
		return device, strings.Join(list, ","), nil
	}
	if o.MountType != "cifs" {
		return device, opts, nil
	}
	parsed, err := url.Parse(device)
	if err != nil {
		return "", "", fmt.Errorf("error parsing mount device url: %w", err)
	}
	if parsed.Hostname() != "" {
		device, err = replaceHost(ctx, resolve, device, parsed.Hostname())
	}
	return device, opts, err
}

// replaceHost returns text with the address of host in its place, which stays if it is an address.
func replaceHost(ctx context.Context, resolve Resolver, text, host string) (string, error) {
	if _, err := netip.ParseAddr(host); err == nil {
		return text, nil
	}
	addr, err := resolve(ctx, host)
	if err != nil {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return strings.Replace(text, host, addr.String(), 1), nil
}
