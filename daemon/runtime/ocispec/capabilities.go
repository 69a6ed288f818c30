package ocispec

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/containerd/errdefs"
)

// DefaultCapabilities lists what the root user of a container may do.
func DefaultCapabilities() []string {
	return []string{
		"CAP_CHOWN",
		"CAP_DAC_OVERRIDE",
		"CAP_FSETID",
		"CAP_FOWNER",
		"CAP_MKNOD",
		"CAP_NET_RAW",
		"CAP_SETGID",
		"CAP_SETUID",
		"CAP_SETFCAP",
		"CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE",
		"CAP_SYS_CHROOT",
		"CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

// available returns the capabilities that this process has and so can hand on. When they cannot be read, all that are
// known count, and the kernel has the last word.
var available = sync.OnceValue(func() []string {
	if current, err := cap.Current(); err == nil && len(current) > 0 {
		return current
	}
	return cap.Known()
})

const allCapabilities = "ALL"

// NormalizeCapabilities returns names in their full form: upper case, with CAP_. "ALL" stays as it is. A name that
// neither the kernel nor this process has is an errdefs.ErrInvalidArgument.
func NormalizeCapabilities(names []string) ([]string, error) {
	var out []string
	for _, name := range names {
		name = strings.ToUpper(name)
		if name != allCapabilities {
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if !slices.Contains(cap.Known(), name) {
				return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unknown capability: %q", name))
			}
			if !slices.Contains(available(), name) {
				return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("capability not supported by your kernel or not available in the current environment: %q", name))
			}
		}
		out = append(out, name)
	}
	return out, nil
}

// Capabilities returns what a container gets: the defaults without what is dropped, and with what is added. "ALL" among
// the added stands for everything there is, less what is dropped; among the dropped, for the whole of the defaults.
func Capabilities(add, drop []string) ([]string, error) {
	add, err := NormalizeCapabilities(add)
	if err != nil {
		return nil, err
	}
	if drop, err = NormalizeCapabilities(drop); err != nil {
		return nil, err
	}
	dropped := func(name string) bool { return slices.Contains(drop, name) }
	switch {
	case slices.Contains(add, allCapabilities):
		return slices.DeleteFunc(AllCapabilities(), dropped), nil
	case slices.Contains(drop, allCapabilities):
		return add, nil
	}
	return append(slices.DeleteFunc(DefaultCapabilities(), dropped), add...), nil
}

// AllCapabilities lists what a privileged container gets: all that this process has.
func AllCapabilities() []string { return slices.Clone(available()) }
