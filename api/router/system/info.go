package system

import (
	"strings"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/types"
)

// versionedInfo is an answer of GET /info. Its own fields are those that some versions have; they hide the embedded
// ones of the same name.
type versionedInfo struct {
	types.Info
	RegistryConfig   *registryConfig
	ContainerdCommit commit
	RuncCommit       commit
	InitCommit       commit

	BridgeNfIptables  *bool `json:",omitempty"` // before 1.50
	BridgeNfIP6tables *bool `json:"BridgeNfIp6tables,omitempty"`
}

// commit has, before 1.49, the version that the daemon was built for beside the one it found.
type commit struct {
	ID       string
	Expected string `json:",omitempty"`
}

// registryConfig has two fields before 1.47 that are always null.
type registryConfig struct {
	registry.ServiceConfig
	CIDRs     *[]string `json:"AllowNondistributableArtifactsCIDRs,omitempty"`
	Hostnames *[]string `json:"AllowNondistributableArtifactsHostnames,omitempty"`
}

// adaptInfo gives info the fields that it has in an API version.
func adaptInfo(info types.Info, version string) versionedInfo {
	before := func(v string) bool { return route.CompareVersions(version, v) < 0 }
	v := versionedInfo{
		Info:             info,
		ContainerdCommit: commit{ID: info.ContainerdCommit.ID},
		RuncCommit:       commit{ID: info.RuncCommit.ID},
		InitCommit:       commit{ID: info.InitCommit.ID},
	}
	if info.Info.RegistryConfig != nil {
		v.RegistryConfig = &registryConfig{ServiceConfig: *info.Info.RegistryConfig}
	}
	if before("1.25") {
		v.SecurityOptions = securityNames(info.SecurityOptions)
	}
	if !before("1.42") {
		v.KernelMemory = false
	}
	if before("1.44") {
		v.Runtimes = map[string]system.RuntimeWithStatus{}
		for name, r := range info.Runtimes {
			v.Runtimes[name] = system.RuntimeWithStatus{Runtime: r.Runtime}
		}
	}
	if before("1.46") {
		v.Containerd = nil
	}
	if before("1.47") && v.RegistryConfig != nil {
		v.RegistryConfig.CIDRs, v.RegistryConfig.Hostnames = new([]string), new([]string)
	}
	if before("1.49") {
		v.FirewallBackend = nil
		for _, c := range []*commit{&v.ContainerdCommit, &v.RuncCommit, &v.InitCommit} {
			c.Expected = c.ID
		}
	}
	if before("1.50") {
		v.DiscoveredDevices = nil
		v.BridgeNfIptables, v.BridgeNfIP6tables = new(bool), new(bool)
	}
	return v
}

// securityNames cuts "name=seccomp,profile=builtin" down to "seccomp", as it was before 1.25.
func securityNames(options []string) []string {
	names := make([]string, 0, len(options))
	for _, option := range options {
		for field := range strings.SplitSeq(option, ",") {
			if name, found := strings.CutPrefix(field, "name="); found {
				names = append(names, name)
			}
		}
	}
	return names
}
