package ocispec

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setDevices puts in the device nodes that the container gets beside the standard ones, and the rules that allow them.
func setDevices(in Input, spec *specs.Spec) error {
	for _, req := range in.HostConfig.DeviceRequests {
		return fmt.Errorf("could not select device driver %q with capabilities: %v", req.Driver, req.Capabilities)
	}

	rules := defaultDeviceRules()
	if in.HostConfig.Privileged {
		host, err := oci.HostDevices()
		if err != nil {
			return fmt.Errorf("listing the host's devices: %w", err)
		}
		spec.Linux.Devices = host
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	for _, mapping := range in.HostConfig.Devices {
		if in.HostConfig.Privileged && mapping.PathOnHost == mapping.PathInContainer {
			continue // it is there already
		}
		nodes, err := devicesAt(mapping)
		if err != nil {
			return err
		}
		spec.Linux.Devices = append(spec.Linux.Devices, nodes...)
		if in.HostConfig.Privileged {
			continue
		}
		for _, node := range nodes {
			major, minor := node.Major, node.Minor
			rules = append(rules, specs.LinuxDeviceCgroup{
				Allow: true, Type: node.Type, Major: &major, Minor: &minor, Access: mapping.CgroupPermissions,
			})
		}
	}
	if !in.HostConfig.Privileged {
		for _, text := range in.HostConfig.DeviceCgroupRules {
			rule, err := ParseDeviceRule(text)
			if err != nil {
				return err
			}
			rules = append(rules, rule)
		}
	}
	spec.Linux.Resources.Devices = rules
	return nil
}

// devicesAt returns the device node at the mapping's host path, or all those below it when it is a directory.
func devicesAt(mapping container.DeviceMapping) ([]specs.LinuxDevice, error) {
	onHost := mapping.PathOnHost
	if resolved, err := filepath.EvalSymlinks(onHost); err == nil {
		onHost = resolved
	}
	node, err := oci.DeviceFromPath(onHost)
	if err == nil {
		node.Path = mapping.PathInContainer
		return []specs.LinuxDevice{*node}, nil
	}
	var nodes []specs.LinuxDevice
	if errors.Is(err, oci.ErrNotADevice) {
		// What is no device, or vanishes meanwhile, is passed over.
		_ = filepath.WalkDir(onHost, func(path string, _ fs.DirEntry, _ error) error {
			if node, err := oci.DeviceFromPath(path); err == nil {
				node.Path = mapping.PathInContainer + strings.TrimPrefix(path, onHost)
				nodes = append(nodes, *node)
			}
			return nil
		})
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("error gathering device information while adding custom device %q: %w", mapping.PathOnHost, err)
	}
	return nodes, nil
}

// deviceRule is the form of --device-cgroup-rule: "c 42:* rmw".
var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// ParseDeviceRule reads a device rule such as "c 42:* rmw". A star stands for any number.
func ParseDeviceRule(text string) (specs.LinuxDeviceCgroup, error) {
	part := deviceRule.FindStringSubmatch(text)
	if part == nil {
		return specs.LinuxDeviceCgroup{}, fmt.Errorf("invalid device cgroup rule format: '%s'", text)
	}
	major, err := deviceNumber(part[2])
	if err != nil {
		return specs.LinuxDeviceCgroup{}, fmt.Errorf("invalid major value in device cgroup rule format: '%s'", text)
	}
	minor, err := deviceNumber(part[3])
	if err != nil {
		return specs.LinuxDeviceCgroup{}, fmt.Errorf("invalid minor value in device cgroup rule format: '%s'", text)
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: part[1], Major: &major, Minor: &minor, Access: part[4]}, nil
}

func deviceNumber(s string) (int64, error) {
	if s == "*" {
		return -1, nil
	}
	return strconv.ParseInt(s, 10, 64)
}
