package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/volumes/mountpoint"
)

// createMounts is what a new container's mounts need done.
type createMounts struct {
	plan   mountpoint.Plan
	held   []heldVolume // what create took, for the undo of a create that fails
	layers []imageLayer // to be made for its images
}

type heldVolume struct {
	name      string
	anonymous bool
}

// planMounts decides the mount points of a new container.
func (s *Service) planMounts(ctx context.Context, r *Record, volumes map[string]struct{}) (*createMounts, error) {
	in := mountpoint.Input{
		Binds: r.HostConfig.Binds, Mounts: r.HostConfig.Mounts, Tmpfs: r.HostConfig.Tmpfs, Volumes: volumes,
		VolumeDriver: r.HostConfig.VolumeDriver, DataRoot: s.cfg.Root, SourceExists: pathExists,
		ReadOnlyNonRecursive: route.VersionBefore(ctx, "1.44"),
	}
	for _, text := range r.HostConfig.VolumesFrom {
		ref, mode, err := mountpoint.ParseVolumesFrom(text)
		if err != nil {
			return nil, err
		}
		other, err := s.lookup(ref)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		in.VolumesFrom = append(in.VolumesFrom, mountpoint.Source{Points: other.rec().MountPoints, Mode: mode})
	}
	plan, err := mountpoint.Build(in)
	if err != nil {
		return nil, err
	}
	return &createMounts{plan: plan}, nil
}

func pathExists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// create makes or looks up the volumes of the plan, each with the container among its users, and enters them into the
// record.
func (m *createMounts) create(ctx context.Context, s *Service, r *Record) error {
	for _, need := range m.plan.Volumes {
		var v Volume
		var err error
		if need.Existing {
			v, err = s.volumes.Get(ctx, need.Name, need.Driver, r.ID)
		} else {
			v, err = s.volumes.Create(ctx, VolumeRequest{Name: need.Name, Driver: need.Driver, Options: need.Options, Labels: need.Labels, Ref: r.ID})
		}
		if err != nil {
			return err
		}
		m.held = append(m.held, heldVolume{name: v.Name, anonymous: need.Name == ""})
		s.claim(v.Name, r.ID)
		need.Fill(v.Name, v.Driver, v.Mountpoint)
		if err := fault.Point("containers.create.volume"); err != nil {
			return err
		}
	}
	r.MountPoints = m.plan.Points
	return m.resolveImages(ctx, s, r)
}

// undo gives back what create took. Named volumes stay, as they do when a container is removed.
func (m *createMounts) undo(ctx context.Context, s *Service, r *Record) error {
	var errs []error
	for _, v := range m.held {
		errs = append(errs, s.volumes.Release(ctx, v.name, r.ID))
		if v.anonymous {
			errs = append(errs, s.volumes.Remove(ctx, v.name))
		}
	}
	return errors.Join(errs...)
}

// copyUp fills the container's new and empty volumes with what the image has at their destinations.
func (s *Service) copyUp(ctx context.Context, r *Record, m *createMounts) (err error) {
	var wanted []mountpoint.VolumeNeed
	for _, need := range m.plan.Volumes {
		if need.Point.CopyData && !need.Existing {
			wanted = append(wanted, need)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	root, err := s.layers.MountRW(ctx, r.ID, r.MountLabel)
	if err != nil {
		return fmt.Errorf("mount the root file system to fill volumes: %w", err)
	}
	defer func() { err = errors.Join(err, s.layers.UnmountRW(ctx, r.ID)) }()
	data, err := s.layers.RWMetadata(r.ID)
	if err != nil {
		return fmt.Errorf("look at the layers of the image: %w", err)
	}
	for _, need := range wanted {
		// Links in the image are followed as the container would: none leads out of the root.
		source, err := fs.RootPath(root, need.Point.Destination)
		if err != nil {
			return fmt.Errorf("look at %s in the image: %w", need.Point.Destination, err)
		}
		info, err := os.Stat(source)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at %s in the image: %w", need.Point.Destination, err)
		}
		if !info.IsDir() && need.FromImage {
			return errdefs.ErrInvalidArgument.WithMessage("cannot mount volume over existing file, file exists " + source)
		}
		if err := s.volumes.CopyUp(ctx, need.Point.Name, source, mergedDirs(data, root, source)); err != nil {
			return err
		}
	}
	return nil
}

// mergedDirs returns the directories that an overlay on root shows merged as dir, topmost first. Data is what its
// driver tells of the layer; that of other drivers names no such directories. A layer in which a link is on the way to
// dir is left out: it has no part in what is there.
func mergedDirs(data map[string]string, root, dir string) []string {
	below, err := filepath.Rel(root, dir)
	if err != nil || data["UpperDir"] == "" {
		return nil
	}
	var dirs []string
	for _, layer := range append([]string{data["UpperDir"]}, filepath.SplitList(data["LowerDir"])...) {
		layer, err := filepath.EvalSymlinks(layer) // layers have short names
		if err != nil {
			continue
		}
		want := filepath.Join(layer, below)
		if got, err := filepath.EvalSymlinks(want); err == nil && got == want {
			dirs = append(dirs, want)
		}
	}
	return dirs
}

// claim notes that a container which is being created uses a volume.
func (s *Service) claim(volume, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims[id] = append(s.claims[id], volume)
}

// dropClaims forgets the claims of a container that has been created, or will not be.
func (s *Service) dropClaims(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, id)
}

// VolumeUsers lists the containers that use each volume, by the records: those that exist and those that are being
// created.
func (s *Service) VolumeUsers() map[string][]string {
	users := map[string][]string{}
	for _, c := range s.all() {
		for _, v := range c.brief.Load().Volumes {
			users[v.Name] = append(users[v.Name], c.id)
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, names := range s.claims {
		for _, name := range names {
			users[name] = append(users[name], id)
		}
	}
	return users
}
