package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/sys/user"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/volumes/mountpoint"
)

// volumeMount is one mounted volume of a run, as much as is needed to unmount it.
type volumeMount struct {
	name, driver, mountID, destination string
}

// networkFiles are the files of a container that the daemon writes. A user's mount at one of these paths replaces ours.
type networkFiles struct {
	hostname, hosts, resolvConf networkFile
}

type networkFile struct {
	path     string
	writable bool
	foreign  bool // a user's mount, which we neither write nor chown
}

// mountedVolumes lists the volumes that the record says are mounted.
func mountedVolumes(r *Record) []volumeMount {
	var list []volumeMount
	for dest, m := range r.MountPoints {
		if m.IsVolume() && m.ID != "" {
			list = append(list, volumeMount{name: m.Name, driver: m.Driver, mountID: m.ID, destination: dest})
		}
	}
	return list
}

// mountPlan is what setupMounts made of a record: the mounts of the container in order, and what to write into the
// record.
type mountPlan struct {
	mounts  []ocispec.Mount
	volumes []volumeMount
	changes map[string]mountChange // by destination
	pins    []heldSource
	files   networkFiles
}

// mountChange is what a record says of a mount point once its container runs.
type mountChange struct{ id, source string }

// heldSource is one source of a mount that is held until the runtime has mounted it.
type heldSource struct {
	source, pin string
	release     func() error
}

// setupMounts mounts the container's volumes and lists all its mounts, parents before children. It is the same for a
// first start, a restart and a start after the host was rebooted: the record is all it knows. On failure everything
// it set up is taken down again.
func (s *Service) setupMounts(ctx context.Context, c *Container, r *Record) (plan *mountPlan, err error) {
	plan = &mountPlan{changes: map[string]mountChange{}, files: s.ownFiles(r)}
	made := plan // what there is to take down, also when no plan is returned
	var undo undoList
	defer undo.runOn(&err)
	defer func() {
		if err != nil {
			err = errors.Join(err, made.releasePins())
		}
	}()
	tmpfs, err := mountpoint.AllTmpfs(r.HostConfig.Tmpfs, r.MountPoints)
	if err != nil {
		return nil, err
	}
	covered := map[string]bool{}
	for _, t := range tmpfs {
		covered[filepath.Clean(t.Destination)] = true
		plan.add(ocispec.Mount{Source: ocispec.TmpfsSource, Destination: t.Destination, Writable: true, Data: t.Data})
	}
	for _, m := range mountpoint.Sorted(r.MountPoints) {
		dest := m.Destination
		if covered[filepath.Clean(dest)] {
			continue
		}
		switch {
		case m.IsVolume():
			vm, path, err := s.mountVolume(ctx, c, m)
			if err != nil {
				return nil, err
			}
			undo.add(func() error { return s.volumes.Unmount(ctx, vm.name, vm.mountID) })
			plan.volumes = append(plan.volumes, vm)
			plan.changes[dest] = mountChange{id: vm.mountID, source: cmp.Or(m.Source, path)}
			if err := relabel(m, path, r.MountLabel); err != nil {
				return nil, err
			}
			if err := s.placeHeld(plan, m, path); err != nil {
				return nil, err
			}
			s.publishMount(c, m, vm)
		case m.Type == mount.TypeImage:
			layer, path, err := s.mountImage(ctx, r, m)
			if err != nil {
				return nil, err
			}
			undo.add(func() error { return s.layers.UnmountRW(ctx, layer) })
			plan.changes[dest] = mountChange{id: layer, source: path}
			if err := s.placeHeld(plan, m, path); err != nil {
				return nil, err
			}
		case m.Type == mount.TypeBind || m.Type == "":
			if err := s.prepareBind(m, r.MountLabel); err != nil {
				return nil, err
			}
			plan.place(m, m.Source)
		default:
			return nil, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("mount %s: stated does not mount what is of type %q", dest, m.Type))
		}
	}
	plan.mounts = ocispec.SortMounts(plan.mounts)
	plan.mounts = append(plan.mounts, plan.files.mounts(r)...)
	return plan, nil
}

// mountVolume looks the volume up, through its driver when this daemon has not seen it yet, and mounts it.
func (s *Service) mountVolume(ctx context.Context, c *Container, m *mountpoint.MountPoint) (volumeMount, string, error) {
	v, err := s.volumes.Get(ctx, m.Name, m.Driver, c.id)
	if err != nil {
		return volumeMount{}, "", fmt.Errorf("mount volume at %s: %w", m.Destination, err)
	}
	vm := volumeMount{name: v.Name, driver: v.Driver, mountID: cmp.Or(m.ID, ids.New()), destination: m.Destination}
	path, err := s.volumes.Mount(ctx, v.Name, vm.mountID)
	if err != nil {
		return volumeMount{}, "", fmt.Errorf("mount volume at %s: %w", m.Destination, err)
	}
	return vm, path, nil
}

func (s *Service) publishMount(c *Container, m *mountpoint.MountPoint, vm volumeMount) {
	s.events.Publish(events.VolumeEventType, events.ActionMount, vm.name, map[string]string{
		"driver": vm.driver, "container": c.id, "destination": m.Destination,
		"read/write": strconv.FormatBool(m.RW), "propagation": string(m.Propagation),
	})
}

// unmountVolumes gives the volumes of a run back to their drivers and logs what fails.
func (s *Service) unmountVolumes(ctx context.Context, c *Container, list []volumeMount) {
	for _, v := range list {
		if err := s.volumes.Unmount(ctx, v.name, v.mountID); err != nil {
			s.log.Error("cannot unmount a volume", "container", c.id, "volume", v.name, "err", err)
			continue
		}
		s.events.Publish(events.VolumeEventType, events.ActionUnmount, v.name,
			map[string]string{"driver": v.driver, "container": c.id})
	}
}

// placeHeld places what m shows of the volume or image at path, held so that nobody can swap it any more.
func (s *Service) placeHeld(plan *mountPlan, m *mountpoint.MountPoint, path string) error {
	held := heldSource{source: filepath.Join(path, m.Subpath())}
	var err error
	if held.pin, held.release, err = s.pins.Below(path, m.Subpath()); err != nil {
		return err // about what the user asked for, in Docker's words
	}
	plan.pins = append(plan.pins, held)
	plan.place(m, held.pin)
	return nil
}

// releasePins lets go of what was held. A second call does nothing.
func (p *mountPlan) releasePins() error {
	var errs []error
	for _, held := range p.pins {
		errs = append(errs, held.release())
	}
	p.pins = nil
	return errors.Join(errs...)
}

// named gives the text of the runtime's error the names that users know. The runtime's errors have no more than that.
func (p *mountPlan) named(err error) error {
	text := err.Error()
	for _, held := range p.pins {
		text = strings.ReplaceAll(text, held.pin, held.source)
	}
	return errors.New(text)
}

// relabel gives what lies at path the SELinux label of the container, if the user asked for that.
func relabel(m *mountpoint.MountPoint, path, mountLabel string) error {
	if m.Label() == "" || mountLabel == "" {
		return nil
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("error evaluating symlinks from mount source %q: %w", path, err)
	}
	if err := label.Relabel(resolved, mountLabel, m.Label() == "z"); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("error setting label on mount source '%s': %w", resolved, err)
	}
	return nil
}

// prepareBind checks a bind, and makes its source when the user's way of asking for it implies that. The source is a
// name that the runtime follows once, when it mounts: whoever can change where it leads could have done so before.
func (s *Service) prepareBind(m *mountpoint.MountPoint, mountLabel string) error {
	if err := mountpoint.CheckReadOnly(m.Spec); err != nil {
		return err
	}
	if err := s.makeSource(m); err != nil || m.SkipMountpointCreation {
		return err
	}
	return relabel(m, m.Source, mountLabel)
}

// makeSource makes a source that is missing. It belongs to root as the container sees it.
func (s *Service) makeSource(m *mountpoint.MountPoint) error {
	if slices.Contains(s.cfg.Sockets, m.Source) && (s.closing.Load() || s.ctx.Err() != nil) {
		// A directory in place of the socket would keep the next daemon from listening.
		return fmt.Errorf("Could not mount %q to container while the daemon is shutting down", m.Source) //nolint:staticcheck // Docker's text
	}
	_, err := os.Stat(m.Source)
	switch {
	case err == nil, errors.Is(err, unix.ENOTDIR): // of which the runtime tells, as with Docker
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("error while checking the source of a bind mount: %w", err)
	case m.SkipMountpointCreation:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source))
	}
	if err := user.MkdirAllAndChown(m.Source, 0o755, s.cfg.UID, s.cfg.GID, user.WithOnlyNew); err != nil {
		return fmt.Errorf("error while creating mount source path '%s': %w", m.Source, err)
	}
	return nil
}

// place puts a directory or file at its destination, or takes it as one of the network files.
func (p *mountPlan) place(m *mountpoint.MountPoint, source string) {
	for _, f := range []struct {
		dest string
		file *networkFile
	}{{"/etc/hostname", &p.files.hostname}, {"/etc/hosts", &p.files.hosts}, {"/etc/resolv.conf", &p.files.resolvConf}} {
		if filepath.Clean(m.Destination) == f.dest {
			*f.file = networkFile{path: source, writable: m.RW, foreign: true}
			return
		}
	}
	mt := ocispec.Mount{Source: source, Destination: m.Destination, Writable: m.RW, Propagation: string(m.Propagation)}
	if b := m.Spec.BindOptions; b != nil {
		mt.PropagationDefaulted = b.Propagation == ""
		mt.NonRecursive = b.NonRecursive
		mt.ReadOnlyNonRecursive = b.ReadOnlyNonRecursive
		mt.ReadOnlyForceRecursive = b.ReadOnlyForceRecursive
	}
	p.add(mt)
}

func (p *mountPlan) add(m ocispec.Mount) { p.mounts = append(p.mounts, m) }

// ownFiles are the network files in the container's own directory, writable unless the root is read-only.
func (s *Service) ownFiles(r *Record) networkFiles {
	own := func(path string) networkFile {
		return networkFile{path: path, writable: !r.HostConfig.ReadonlyRootfs}
	}
	return networkFiles{hostname: own(r.HostnamePath), hosts: own(r.HostsPath), resolvConf: own(r.ResolvConfPath)}
}

// mounts are the network files as mounts; a file that is not there is left out.
func (n networkFiles) mounts(r *Record) []ocispec.Mount {
	var list []ocispec.Mount
	for _, f := range []struct {
		dest string
		file networkFile
	}{{"/etc/resolv.conf", n.resolvConf}, {"/etc/hostname", n.hostname}, {"/etc/hosts", n.hosts}} {
		if f.file.path == "" {
			continue
		}
		list = append(list, ocispec.Mount{Source: f.file.path, Destination: f.dest, Writable: f.file.writable, Propagation: "rprivate"})
	}
	return list
}

// needsShm says whether /dev/shm is a tmpfs on the host, which other containers may join.
func needsShm(r *Record) bool {
	mode := r.HostConfig.IpcMode
	return mode.IsShareable() || mode == ""
}

// mountShm mounts the host's side of a shareable /dev/shm and returns its path.
func (s *Service) mountShm(r *Record) (string, error) {
	if !needsShm(r) {
		return "", nil
	}
	path := filepath.Join(s.cfg.Dir, r.ID, "mounts", "shm")
	err := s.passableDir(filepath.Dir(path))
	if err == nil {
		err = user.MkdirAndChown(path, 0o700, s.cfg.UID, s.cfg.GID)
	}
	if err != nil {
		return "", fmt.Errorf("make /dev/shm: %w", err)
	}
	size := cmp.Or(r.HostConfig.ShmSize, settings.DefaultShmSize)
	options := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", size, s.cfg.UID, s.cfg.GID)
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return "", fmt.Errorf("mount /dev/shm: %w", err)
	}
	return path, nil
}

// unmountShm takes the host's side of /dev/shm away. It is no error when nothing is mounted.
func (s *Service) unmountShm(r *Record) error {
	if !needsShm(r) {
		return nil
	}
	err := unix.Unmount(filepath.Join(s.cfg.Dir, r.ID, "mounts", "shm"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
