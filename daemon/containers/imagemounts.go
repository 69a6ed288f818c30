package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/volumes/mountpoint"
)

// An image is mounted through a layer of its own on top of it, which nobody writes to. The layer holds the image's
// layers from create to removal, whatever becomes of the image, and is mounted while the container runs.

// maxLayerName is how long the name of a layer may be: that of a file.
const maxLayerName = 255

// imageLayer is the name of the layer that an image mount of the record has. It is dockerd's, but where dockerd's is
// no file name, or that of another mount of the container.
func (r *Record) imageLayer(m *mountpoint.MountPoint) string {
	if m.ID != "" && !strings.Contains(m.ID, "/") {
		return m.ID
	}
	ref := cmp.Or(m.Name, m.Spec.Source)
	if name := r.ID + "-" + ref; !strings.Contains(ref, "/") && len(name) <= maxLayerName && r.mountsFirst(m, ref) {
		return name
	}
	return r.ID + "-" + digest.FromString(m.Destination).Encoded()
}

// mountsFirst reports whether no other mount of the same image comes before m.
func (r *Record) mountsFirst(m *mountpoint.MountPoint, ref string) bool {
	for _, other := range mountpoint.Sorted(r.MountPoints) {
		if other.Type == mount.TypeImage && cmp.Or(other.Name, other.Spec.Source) == ref {
			return other.Destination == m.Destination
		}
	}
	return true
}

// imageLayers lists the layers of all image mounts.
func (r *Record) imageLayers() []string {
	var list []string
	for _, m := range mountpoint.Sorted(r.MountPoints) {
		if m.Type == mount.TypeImage {
			list = append(list, r.imageLayer(m))
		}
	}
	return list
}

// createImageLayers makes the layers for the images of the plan and enters them into the record.
func (m *createMounts) createImageLayers(ctx context.Context, s *Service, r *Record) error {
	for _, need := range m.plan.Images {
		id, chain, err := s.neededImage(ctx, need)
		if err != nil {
			return err
		}
		name := r.imageLayer(need.Point)
		if err := s.createImageLayer(ctx, r, name, chain); err != nil {
			return err
		}
		m.layers = append(m.layers, name)
		if err := fault.Point("containers.create.imagelayer"); err != nil {
			return err
		}
		path, err := s.layers.MountRW(ctx, name, r.MountLabel) // only to tell the record where it will be
		if err != nil {
			return fmt.Errorf("mount image %s: %w", need.Ref, err)
		}
		if err := s.layers.UnmountRW(ctx, name); err != nil {
			return fmt.Errorf("unmount image %s: %w", need.Ref, err)
		}
		need.Fill(id, name, path)
	}
	return nil
}

// neededImage returns the id and the top layer of an image to mount. One that another container mounts may have been
// removed by force since.
func (s *Service) neededImage(ctx context.Context, need mountpoint.ImageNeed) (id string, chain digest.Digest, err error) {
	if need.Layer != "" {
		if chain, err := s.layers.ParentRW(need.Layer); err == nil {
			return need.Ref, chain, nil
		}
	}
	img, err := s.images.Image(ctx, need.Ref)
	return img.ID.String(), img.ChainID, err
}

func (s *Service) createImageLayer(ctx context.Context, r *Record, name string, chain digest.Digest) error {
	return s.layers.CreateRW(ctx, name, LayerRequest{
		Bare: true, Parent: chain, MountLabel: r.MountLabel,
		Commit: func(files []File) error { return s.journal.Commit(ctx, written(files)...) },
	})
}

// mountImage mounts an image for a run and returns the layer's name and the path. A layer that is gone is made again:
// nobody has written to it. That is so where dockerd gave it a name that it does not find again either.
func (s *Service) mountImage(ctx context.Context, r *Record, m *mountpoint.MountPoint) (layer, path string, err error) {
	layer = r.imageLayer(m)
	path, err = s.layers.MountRW(ctx, layer, r.MountLabel)
	if errdefs.IsNotFound(err) {
		var img Image
		if img, err = s.images.Image(ctx, m.Spec.Source); err != nil {
			return "", "", fmt.Errorf("mount image at %s: %w", m.Destination, err)
		}
		if err = s.createImageLayer(ctx, r, layer, img.ChainID); err == nil {
			path, err = s.layers.MountRW(ctx, layer, r.MountLabel)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("mount image at %s: %w", m.Destination, err)
	}
	return layer, path, nil
}

// unmountImages takes back the image mounts of a run. Those that are not mounted are no error.
func (s *Service) unmountImages(ctx context.Context, r *Record) error {
	var errs []error
	for _, name := range r.imageLayers() {
		if err := s.layers.UnmountRW(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeImageLayers deletes what a container that is no more had of the images that it mounted.
func (s *Service) removeImageLayers(ctx context.Context, r *Record) error {
	var errs []error
	for _, name := range r.imageLayers() {
		errs = append(errs, s.removeImageLayer(ctx, name))
	}
	return errors.Join(errs...)
}

func (s *Service) removeImageLayer(ctx context.Context, name string) error {
	if _, mounted := s.layers.MountedRW(name); mounted { // by dockerd, which mounts it from create to removal
		if err := s.layers.UnmountRW(ctx, name); err != nil {
			return err
		}
	}
	err := s.layers.RemoveRW(ctx, name, func(dirs []string) error { return s.journal.Commit(ctx, removed(dirs)...) })
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
