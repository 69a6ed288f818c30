package ocispec

import "path/filepath"

// CgroupsPath returns where the container's cgroup lies: "/docker/ID" below each hierarchy with the cgroupfs driver,
// "system.slice:docker:ID" (slice, prefix, name) with systemd's. Docker's names are kept, because tools look for them.
func CgroupsPath(in Input) string {
	systemd := in.Host.CgroupDriver == CgroupDriverSystemd
	parent := "/docker"
	if systemd {
		parent = "system.slice"
	}
	if in.Host.CgroupParent != "" {
		parent = in.Host.CgroupParent
	}
	if in.HostConfig.CgroupParent != "" {
		parent = in.HostConfig.CgroupParent
	}
	if systemd {
		return parent + ":docker:" + in.ID
	}
	return filepath.Join(parent, in.ID)
}
