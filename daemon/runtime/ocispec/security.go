package ocispec

import (
	"errors"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultAppArmorProfile is the name of Docker's profile for containers.
const DefaultAppArmorProfile = "docker-default"

const apparmorUnconfined = "unconfined"

// LoadAppArmorDefault loads the default profile into the kernel unless it is there. Call it only on a host with
// AppArmor; it runs apparmor_parser.
func LoadAppArmorDefault() error { return apparmor.LoadDefaultProfile(DefaultAppArmorProfile) }

// apparmorProfile returns the profile of the container's processes. On a host without AppArmor (no default is loaded)
// it names none, even when the container asks for one, as Docker does.
func apparmorProfile(in Input) string {
	switch {
	case in.Host.AppArmorDefault == "":
		return ""
	case in.Security.AppArmorProfile != "":
		return in.Security.AppArmorProfile
	case in.HostConfig.Privileged:
		return apparmorUnconfined
	}
	return in.Host.AppArmorDefault
}

// setSeccomp chooses the filter of system calls: the container's own, else none for a privileged one, else the daemon's.
func setSeccomp(in Input, spec *specs.Spec) error {
	profile := in.Security.SeccompProfile
	switch {
	case profile == SeccompUnconfined:
		return nil
	case profile == "" && in.HostConfig.Privileged:
		return nil
	case !in.Host.SeccompSupported:
		if profile != "" && profile != SeccompBuiltin {
			return errors.New("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
		}
		return nil
	}
	if profile == "" {
		profile = in.Host.SeccompProfile
	}
	var err error
	switch profile {
	case SeccompUnconfined:
	case "", SeccompBuiltin:
		spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec)
	default:
		spec.Linux.Seccomp, err = seccomp.LoadProfile(profile, spec)
	}
	return err
}
