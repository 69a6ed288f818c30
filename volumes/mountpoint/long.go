package mountpoint

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// ParseMount turns one entry of HostConfig.Mounts (docker run --mount) into a record. It looks at nothing on the host:
// CheckSource does. Errors are errdefs.ErrInvalidArgument with Docker's texts.
func ParseMount(m mount.Mount) (MountPoint, error) {
	if err := check(m); err != nil {
		return MountPoint{}, wrongConfig(m, err)
	}
	mp := MountPoint{
		Destination: path.Clean(m.Target),
		RW:          !m.ReadOnly,
		Type:        m.Type,
		Spec:        cloneSpec(m),
	}
	switch m.Type {
	case mount.TypeVolume:
		mp.Name = m.Source
		mp.CopyData = true
		if o := m.VolumeOptions; o != nil {
			mp.CopyData = !o.NoCopy
			if o.DriverConfig != nil {
				mp.Driver = o.DriverConfig.Name
			}
		}
	case mount.TypeBind:
		mp.Source = path.Clean(m.Source)
		mp.Propagation = mount.PropagationRPrivate
		if o := m.BindOptions; o != nil && o.Propagation != "" {
			mp.Propagation = o.Propagation
		}
	case mount.TypeImage:
		mp.Source = m.Source
		mp.Propagation = mount.PropagationRPrivate
	}
	return mp, nil
}

// cloneSpec copies what this package may change later, so that the request it came from stays as it was sent.
func cloneSpec(m mount.Mount) mount.Mount {
	if m.BindOptions != nil {
		o := *m.BindOptions
		m.BindOptions = &o
	}
	return m
}

// CheckSource refuses a bind whose source is missing and is not to be created. The test for existence is the caller's.
func CheckSource(m mount.Mount, exists func(path string) (bool, error)) error {
	if m.Type != mount.TypeBind || (m.BindOptions != nil && m.BindOptions.CreateMountpoint) {
		return nil
	}
	found, err := exists(m.Source)
	if err == nil && !found {
		err = fmt.Errorf("bind source path does not exist: %s", m.Source)
	}
	if err != nil {
		return wrongConfig(m, err)
	}
	return nil
}

// CheckReadOnly refuses contradictory read-only options of a bind. Docker does so when the container starts.
func CheckReadOnly(m mount.Mount) error {
	if m.Type != mount.TypeBind || m.BindOptions == nil {
		return nil
	}
	o := m.BindOptions
	switch {
	case !m.ReadOnly && o.ReadOnlyNonRecursive:
		return errors.New("mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive")
	case !m.ReadOnly && o.ReadOnlyForceRecursive:
		return errors.New("mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive")
	case o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive:
		return errors.New("mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive")
	}
	return nil
}

func wrongConfig(m mount.Mount, err error) error {
	return invalid("invalid mount config for type %q: %v", m.Type, err)
}

func missingField(name string) error { return fmt.Errorf("field %s must not be empty", name) }
func extraField(name string) error   { return fmt.Errorf("field %s must not be specified", name) }

func check(m mount.Mount) error {
	if m.Target == "" {
		return missingField("Target")
	}
	if err := checkDestination(m.Target); err != nil {
		return err
	}
	switch m.Type {
	case mount.TypeBind:
		return checkBind(m)
	case mount.TypeVolume:
		return checkVolume(m)
	case mount.TypeTmpfs:
		return checkTmpfs(m)
	case mount.TypeImage:
		return checkImage(m)
	}
	return errors.New("mount type unknown")
}

// checkDestination refuses the root and relative paths. A backslash counts as a slash, as in Docker.
func checkDestination(p string) error {
	p = strings.ReplaceAll(p, `\`, `/`)
	if path.Clean(p) == "/" {
		return errors.New("invalid specification: destination can't be '/'")
	}
	return checkAbsolute(p)
}

func checkAbsolute(p string) error {
	p = strings.ReplaceAll(p, `\`, `/`)
	if !path.IsAbs(p) {
		return fmt.Errorf("invalid mount path: '%s' mount path must be absolute", p)
	}
	return nil
}

func checkBind(m mount.Mount) error {
	switch {
	case m.Source == "":
		return missingField("Source")
	case m.BindOptions != nil && m.BindOptions.Propagation != "" && !isPropagation(m.BindOptions.Propagation):
		return fmt.Errorf("invalid propagation mode: %s", m.BindOptions.Propagation)
	case m.VolumeOptions != nil:
		return extraField("VolumeOptions")
	case m.ImageOptions != nil:
		return extraField("ImageOptions")
	}
	return checkAbsolute(m.Source)
}

func checkVolume(m mount.Mount) error {
	switch {
	case m.BindOptions != nil:
		return extraField("BindOptions")
	case m.ImageOptions != nil:
		return extraField("ImageOptions")
	}
	anonymous := m.Source == ""
	if m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" {
		if anonymous {
			return errors.New("must not set Subpath when using anonymous volumes")
		}
		if err := checkSubpath(m.VolumeOptions.Subpath); err != nil {
			return err
		}
	}
	if m.ReadOnly && anonymous {
		return errors.New("must not set ReadOnly mode when using anonymous volumes")
	}
	return nil
}

func checkSubpath(subpath string) error {
	if !filepath.IsLocal(subpath) {
		return errors.New("subpath must be a relative path within the volume")
	}
	return nil
}

func checkTmpfs(m mount.Mount) error {
	switch {
	case m.BindOptions != nil:
		return extraField("BindOptions")
	case m.ImageOptions != nil:
		return extraField("ImageOptions")
	case m.Source != "":
		return extraField("Source")
	}
	_, err := tmpfsData(m)
	return err
}

func checkImage(m mount.Mount) error {
	switch {
	case m.BindOptions != nil:
		return extraField("BindOptions")
	case m.VolumeOptions != nil:
		return extraField("VolumeOptions")
	case m.Source == "":
		return missingField("Source")
	case m.ImageOptions != nil && m.ImageOptions.Subpath != "":
		return checkSubpath(m.ImageOptions.Subpath)
	}
	return nil
}
