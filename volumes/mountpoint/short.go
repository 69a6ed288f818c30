package mountpoint

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
)

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// ParseShort reads one entry of HostConfig.Binds (docker run -v): DESTINATION, SOURCE:DESTINATION or
// SOURCE:DESTINATION:MODE. An absolute source is a bind, any other the name of a volume. VolumeDriver is
// HostConfig.VolumeDriver, which goes to volumes only. Errors have Docker's texts and no class, so that clients see the
// status that they see from Docker: 500.
func ParseShort(text, volumeDriver string) (MountPoint, error) {
	parts := strings.SplitN(text, ":", 4)
	var spec mount.Mount
	var mode string
	switch {
	case parts[0] == "" || len(parts) > 3:
		return MountPoint{}, fmt.Errorf("invalid volume specification: '%s'", text)
	case len(parts) == 1:
		spec.Target = parts[0]
	case len(parts) == 2 && validMode(parts[1]): // "/data:ro": an anonymous volume has no mode
		return MountPoint{}, fmt.Errorf("invalid volume specification: '%s'", text)
	default:
		spec.Source, spec.Target = parts[0], parts[1]
		if len(parts) == 3 {
			mode = parts[2]
		}
	}
	if !validMode(mode) {
		return MountPoint{}, fmt.Errorf("invalid mode: %s", mode)
	}
	spec.Type = mount.TypeVolume
	if path.IsAbs(spec.Source) {
		spec.Type = mount.TypeBind
	}
	spec.ReadOnly = !Writable(mode)
	if volumeDriver != "" && spec.Type == mount.TypeVolume {
		spec.VolumeOptions = &mount.VolumeOptions{DriverConfig: &mount.Driver{Name: volumeDriver}}
	}
	if wordOf(mode, copyGroup) != "" {
		if spec.VolumeOptions == nil {
			spec.VolumeOptions = &mount.VolumeOptions{}
		}
		spec.VolumeOptions.NoCopy = true
	}
	if p := wordOf(mode, propagationGroup); p != "" {
		spec.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(p)}
	}
	mp, err := ParseMount(spec)
	if err != nil {
		return MountPoint{}, fmt.Errorf("invalid volume specification: '%s': %v", text, err)
	}
	mp.Mode = mode
	return mp, nil
}

// ParseVolumesFrom reads one entry of HostConfig.VolumesFrom: CONTAINER[:MODE]. The mode may say who writes and which
// label the mount gets, not how it propagates or whether it copies: those are inherited.
func ParseVolumesFrom(text string) (id, mode string, err error) {
	if text == "" {
		return "", "", invalid("volumes-from specification cannot be an empty string")
	}
	id, mode, _ = strings.Cut(text, ":")
	if mode == "" {
		return id, "rw", nil
	}
	if !validMode(mode) || wordOf(mode, propagationGroup) != "" || wordOf(mode, copyGroup) != "" {
		return "", "", invalid("invalid mode: %s", mode)
	}
	return id, mode, nil
}
