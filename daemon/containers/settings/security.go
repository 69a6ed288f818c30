package settings

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/selinux/go-selinux/label"

	"stated.dev/stated/daemon/runtime/ocispec"
)

// ParseSecurityOpt reads the security options of a host configuration, after Defaults, into what the record keeps of
// them. On a host with SELinux it reserves a label for the container.
func ParseSecurityOpt(options []string, host Host) (ocispec.Security, error) {
	sec := ocispec.Security{NoNewPrivileges: host.NoNewPrivileges}
	var labels []string
	for _, opt := range options {
		switch opt {
		case "no-new-privileges":
			sec.NoNewPrivileges = true
			continue
		case "writable-cgroups":
			yes := true
			sec.WritableCgroups = &yes
			continue
		case "disable":
			labels = append(labels, "disable")
			continue
		}
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			key, value, ok = strings.Cut(opt, ":") // the old form
		}
		if !ok {
			return ocispec.Security{}, invalid(fmt.Sprintf("invalid --security-opt 1: %q", opt))
		}
		bad := invalid(fmt.Sprintf("invalid --security-opt 2: %q", opt))
		switch key {
		case "label":
			labels = append(labels, value)
		case "apparmor":
			sec.AppArmorProfile = value
		case "seccomp":
			sec.SeccompProfile = value
		case "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return ocispec.Security{}, bad
			}
			sec.NoNewPrivileges = on
		case "writable-cgroups":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return ocispec.Security{}, bad
			}
			sec.WritableCgroups = &on
		default:
			return ocispec.Security{}, bad
		}
	}
	var err error
	if sec.ProcessLabel, sec.MountLabel, err = label.InitLabels(labels); err != nil {
		return ocispec.Security{}, fmt.Errorf("choosing SELinux labels: %w", err)
	}
	return sec, nil
}
