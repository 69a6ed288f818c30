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

	"stated.dev/stated/volumes/mountpoint"
)

// An image is mounted through a layer of its own on top of it, which nobody writes to. The layer holds the image's
// layers from create to removal, whatever becomes of the image, and is mounted while the container runs. Its record
// comes and goes together with that of the container.

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

// layers lists all layers of the container: its own and those of its image mounts.
func (r *Record) layers() []string { return append([]string{r.ID}, r.imageLayers()...) }

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

// imageLayer is a layer to be made for an image mount.
type imageLayer struct {
	name  string
	chain digest.Digest
}

// resolveImages looks the images of the plan up and enters them into the record.
func (m *createMounts) resolveImages(ctx context.Context, s *Service, r *Record) error {
	for _, need := range m.plan.Images {
		id, chain, err := s.neededImage(ctx, need)
		if err != nil {
			return err
		}
		need.Fill(id, r.imageLayer(need.Point))
		m.layers = append(m.layers, imageLayer{need.Point.ID, chain})
	}
	return nil
}

// createImageLayers makes the layers and calls commit with their record files: theirs become durable together with
// what commit adds, or not at all.
func (s *Service) createImageLayers(ctx context.Context, r *Record, layers []imageLayer, commit func([]File) error) error {
	if len(layers) == 0 {
		return commit(nil)
	}
	return s.layers.CreateRW(ctx, layers[0].name, LayerRequest{
		Bare: true, Parent: layers[0].chain, MountLabel: r.MountLabel,
		Commit: func(files []File) error {
			return s.createImageLayers(ctx, r, layers[1:], func(others []File) error { return commit(append(files, others...)) })
		},
	})
}

// locateImages records where the images of a new container will be mounted, as dockerd does.
func (s *Service) locateImages(ctx context.Context, c *Container) error {
	paths := map[string]string{} // by destination
	for dest, m := range c.rec().MountPoints {
		if m.Type != mount.TypeImage {
			continue
		}
		path, err := s.layers.MountRW(ctx, m.ID, c.rec().MountLabel)
		if err != nil {
			return fmt.Errorf("mount image at %s: %w", dest, err)
		}
		if err := s.layers.UnmountRW(ctx, m.ID); err != nil {
			return fmt.Errorf("unmount image at %s: %w", dest, err)
		}
		paths[dest] = path
	}
	if len(paths) == 0 {
		return nil
	}
	_, err := s.commit(ctx, c, func(r *Record) {
		for dest, path := range paths {
			r.MountPoints[dest].Source = path
		}
	})
	return err
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
		made := []imageLayer{{layer, img.ChainID}}
		if err = s.createImageLayers(ctx, r, made, func(files []File) error { return s.journal.Commit(ctx, written(files)...) }); err == nil {
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

// unmountLeftImages unmounts images that are mounted though the container does not run, so that they can be removed.
func (s *Service) unmountLeftImages(ctx context.Context, r *Record) error {
	for _, name := range r.imageLayers() {
		if _, mounted := s.layers.MountedRW(name); !mounted {
			continue
		}
		if err := s.layers.UnmountRW(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// removeLayers removes the writable layers of a container, those that there are, and calls commit with the directories
// of their records: all are gone when it has returned nil, or none.
func (s *Service) removeLayers(ctx context.Context, names []string, commit func(dirs []string) error) error {
	if len(names) == 0 {
		return commit(nil)
	}
	found := false
	err := s.layers.RemoveRW(ctx, names[0], func(dirs []string) error {
		found = true
		return s.removeLayers(ctx, names[1:], func(others []string) error { return commit(append(dirs, others...)) })
	})
	if errdefs.IsNotFound(err) && !found {
		return s.removeLayers(ctx, names[1:], commit)
	}
	return err
}
