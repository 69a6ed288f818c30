package system

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/registry"
	"golang.org/x/sys/unix"
)

// host is what does not change about the machine while the daemon runs.
type host struct {
	kernel, machine string
	os, osVersion   string
	memory          int64 // bytes
}

// readHost reads what it can. What is missing stays empty in the answers.
func readHost(log *slog.Logger) host {
	var h host
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		log.Warn("Kernel version is not known", "error", err)
	}
	h.kernel, h.machine = unix.ByteSliceToString(uname.Release[:]), unix.ByteSliceToString(uname.Machine[:])

	h.os = "Linux"
	if release, err := openFirst("/etc/os-release", "/usr/lib/os-release"); err != nil {
		log.Warn("Operating system is not known", "error", err)
	} else {
		fields := readRelease(release)
		_ = release.Close() // read only
		if name := fields["PRETTY_NAME"]; name != "" {
			h.os = name
		}
		h.osVersion = fields["VERSION_ID"]
	}

	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		log.Warn("Size of memory is not known", "error", err)
	}
	h.memory = int64(uint64(info.Totalram) * uint64(info.Unit))
	return h
}

// forwardingDisabled reports whether the host forwards no IPv4 packets at the moment, or known when that cannot be
// read.
func forwardingDisabled(known bool) bool {
	value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return known
	}
	return strings.TrimSpace(string(value)) == "0"
}

func openFirst(paths ...string) (f *os.File, err error) {
	for _, path := range paths {
		if f, err = os.Open(path); err == nil {
			return f, nil
		}
	}
	return nil, err
}

// readRelease reads the NAME=value lines of os-release(5).
func readRelease(r io.Reader) map[string]string {
	fields := map[string]string{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, found := strings.Cut(strings.TrimSpace(lines.Text()), "=")
		if !found || strings.HasPrefix(name, "#") {
			continue
		}
		if unquoted, err := strconv.Unquote(value); err == nil {
			value = unquoted
		}
		fields[name] = strings.Trim(value, `'"`)
	}
	return fields
}

// registryConfig describes the registries to clients: the public one, and those that may be spoken to without TLS.
func registryConfig(mirrors, insecure []string) (*registry.ServiceConfig, error) {
	config := &registry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		IndexConfigs:          map[string]*registry.IndexInfo{},
		Mirrors:               append([]string{}, mirrors...),
	}
	for _, name := range insecure {
		if prefix, err := netip.ParsePrefix(name); err == nil {
			if !slices.Contains(config.InsecureRegistryCIDRs, prefix) {
				config.InsecureRegistryCIDRs = append(config.InsecureRegistryCIDRs, prefix)
			}
			continue
		}
		if strings.Contains(name, "/") {
			return nil, fmt.Errorf("insecure registry %q is neither a host nor a CIDR", name)
		}
		config.IndexConfigs[name] = &registry.IndexInfo{Name: name, Mirrors: []string{}}
	}
	config.IndexConfigs["docker.io"] = &registry.IndexInfo{Name: "docker.io", Mirrors: config.Mirrors, Secure: true, Official: true}
	return config, nil
}
