package settings

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// ipcSysctls are those that belong to an IPC namespace, beside all of fs.mqueue.
func ipcSysctls() []string {
	return []string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
		"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
	}
}

// checkSysctls refuses kernel settings that would reach beyond the container: those of no namespace, and those of a
// namespace that it shares with the host. The runtime would refuse them at start.
func checkSysctls(hc *container.HostConfig) error {
	for key := range hc.Sysctls {
		name := dotted(key)
		switch {
		case slices.Contains(ipcSysctls(), name) || strings.HasPrefix(name, "fs.mqueue."):
			if hc.IpcMode.IsHost() {
				return invalid(fmt.Sprintf("sysctl '%s' is not allowed in the host's IPC namespace", key))
			}
		case strings.HasPrefix(name, "net."):
			if hc.NetworkMode.IsHost() {
				return invalid(fmt.Sprintf("sysctl '%s' is not allowed in the host's network namespace", key))
			}
		case name == "kernel.domainname":
			if hc.UTSMode.IsHost() {
				return invalid(fmt.Sprintf("sysctl '%s' is not allowed in the host's UTS namespace", key))
			}
		default:
			return invalid(fmt.Sprintf("sysctl '%s' is not allowed", key))
		}
	}
	return nil
}

// dotted writes a sysctl with dots between its parts. Names may come with slashes, and then a dot is part of a name
// ("net/ipv4/conf/eth0.10/forwarding").
func dotted(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '/' {
		return strings.Map(func(r rune) rune {
			switch r {
			case '/':
				return '.'
			case '.':
				return '/'
			}
			return r
		}, key)
	}
	return key
}
