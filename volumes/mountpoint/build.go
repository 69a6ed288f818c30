package mountpoint

import (
	"cmp"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// Input is everything that decides which mount points a container has.
type Input struct {
	Previous    map[string]*MountPoint // what the container has already; usually nothing
	VolumesFrom []Source               // resolved HostConfig.VolumesFrom, in order
	Binds       []string               // HostConfig.Binds
	Mounts      []mount.Mount          // HostConfig.Mounts
	Tmpfs       map[string]string      // HostConfig.Tmpfs
	Volumes     map[string]struct{}    // Config.Volumes: VOLUME entries of the image and the request

	VolumeDriver string // HostConfig.VolumeDriver
	DataRoot     string // the daemon's; empty: no bind is special
	// SourceExists tests the sources of long-form binds; nil: they are not tested.
	SourceExists func(path string) (bool, error)
	// ReadOnlyNonRecursive makes read-only binds leave submounts alone, as clients before API 1.44 expect.
	ReadOnlyNonRecursive bool
}

// Source is one entry of VolumesFrom with the mount points of the container that it names.
type Source struct {
	Points map[string]*MountPoint
	Mode   string // from ParseVolumesFrom
}

// Plan is what Build decided, and what the caller has to do to make it true.
type Plan struct {
	// Points by destination: MountPoints of config.v2.json, once the volumes and images below are filled in.
	Points map[string]*MountPoint
	// Volumes to create or look up, in an order in which earlier rules come first. Every one is to be referenced.
	Volumes []VolumeNeed
	// Images whose file systems are to be mounted.
	Images []ImageNeed
	// Released are volumes of Previous that no mount point uses any more.
	Released []string
}

// VolumeNeed is a volume that a mount point stands for.
type VolumeNeed struct {
	Point *MountPoint // also in Plan.Points
	// Existing says that the volume must be there (volumes-from); otherwise it is created if need be.
	Existing bool
	// Name is empty for an anonymous volume, Driver for the default one.
	Name, Driver    string
	Options, Labels map[string]string
	// FromImage says that the need comes from a VOLUME entry: its destination must not be a file of the image.
	FromImage bool
}

// Fill enters into the mount point what the store answered.
func (n VolumeNeed) Fill(name, driver, mountpoint string) {
	p := n.Point
	p.Name, p.Driver = name, driver
	if n.Existing || n.FromImage {
		return // as dockerd records them: the source is looked up when it is needed
	}
	p.Source = mountpoint
	if driver == localDriver && p.Mode == "" {
		p.Mode = sharedLabel
	}
}

// ImageNeed is an image that a mount point stands for.
type ImageNeed struct {
	Point *MountPoint // also in Plan.Points
	// Ref is the image as the user wrote it, or its id where the mount point comes from another container.
	Ref string
	// Layer is the other container's on top of the image, which may be all that is left of it.
	Layer string
}

// Fill enters into the mount point which image it is, and the layer on top of it that is mounted for the container.
// Where that will be mounted the caller enters as Source once it is known.
func (n ImageNeed) Fill(imageID, layer string) {
	p := n.Point
	p.Name = cmp.Or(p.Name, n.Ref)
	p.Spec.Source = imageID
	p.ID, p.Source, p.RW = layer, "", false
}

const localDriver = "local"

// Build applies the rules for one destination: previous mount points give way to volumes-from, those to Binds, those
// to Mounts; a VOLUME entry counts only where nothing is mounted. It touches nothing: what has to be created or looked
// up is in the plan. Errors are errdefs.ErrInvalidArgument with Docker's texts.
func Build(in Input) (Plan, error) {
	b := builder{
		in:     in,
		points: maps.Clone(in.Previous),
		layers: map[*MountPoint]string{},
		needs:  map[string]VolumeNeed{},
		taken:  map[string]bool{},
	}
	if b.points == nil {
		b.points = map[string]*MountPoint{}
	}
	for _, source := range in.VolumesFrom {
		b.addFrom(source)
	}
	for _, text := range in.Binds {
		if err := b.addShort(text); err != nil {
			return Plan{}, err
		}
	}
	for _, m := range in.Mounts {
		if err := b.addLong(m); err != nil {
			return Plan{}, err
		}
	}
	for _, destination := range slices.Sorted(maps.Keys(in.Volumes)) {
		b.addAnonymous(destination)
	}
	return b.plan(), nil
}

// builder collects mount points; a later one replaces an earlier one of the same destination, with its need.
type builder struct {
	in     Input
	points map[string]*MountPoint
	layers map[*MountPoint]string // of images from other containers
	needs  map[string]VolumeNeed
	order  []string        // destinations of needs, in the order in which they were last set
	taken  map[string]bool // destinations of Binds and Mounts, which must not repeat
}

func (b *builder) set(p *MountPoint, need *VolumeNeed) {
	b.points[p.Destination] = p
	b.order = slices.DeleteFunc(b.order, func(d string) bool { return d == p.Destination })
	delete(b.needs, p.Destination)
	if need != nil {
		b.needs[p.Destination] = *need
		b.order = append(b.order, p.Destination)
	}
}

func (b *builder) addFrom(source Source) {
	for _, destination := range slices.Sorted(maps.Keys(source.Points)) {
		from := source.Points[destination]
		p := &MountPoint{
			Type:        from.Type,
			Name:        from.Name,
			Source:      from.Source,
			RW:          from.RW && Writable(source.Mode),
			Driver:      from.Driver,
			Destination: from.Destination,
			Propagation: from.Propagation,
			Spec:        from.Spec,
		}
		if p.Type == mount.TypeImage {
			b.layers[p] = from.ID
		}
		if p.Driver == "" { // a bind, a tmpfs or an image
			b.set(p, nil)
			continue
		}
		b.set(p, &VolumeNeed{Point: p, Existing: true, Name: p.Name, Driver: p.Driver})
	}
}

func (b *builder) addShort(text string) error {
	p, err := ParseShort(text, b.in.VolumeDriver)
	if err != nil {
		return err
	}
	if err := b.finishBind(&p); err != nil {
		return err
	}
	if _, isTmpfs := b.in.Tmpfs[p.Destination]; isTmpfs || b.taken[p.Destination] {
		return invalid("Duplicate mount point: %s", p.Destination)
	}
	b.taken[p.Destination] = true
	b.set(&p, volumeNeed(&p))
	return nil
}

func (b *builder) addLong(m mount.Mount) error {
	p, err := ParseMount(m)
	if err != nil {
		return err
	}
	if b.in.SourceExists != nil {
		if err := CheckSource(m, b.in.SourceExists); err != nil {
			return err
		}
	}
	if err := b.finishBind(&p); err != nil {
		return err
	}
	if b.taken[p.Destination] {
		return invalid("Duplicate mount point: %s", m.Target)
	}
	b.taken[p.Destination] = true
	if p.Type == mount.TypeBind {
		p.SkipMountpointCreation = m.BindOptions == nil || !m.BindOptions.CreateMountpoint
	}
	b.set(&p, volumeNeed(&p))
	return nil
}

// volumeNeed returns what p needs of the volume store, or nil.
func volumeNeed(p *MountPoint) *VolumeNeed {
	if p.Type != mount.TypeVolume {
		return nil
	}
	need := &VolumeNeed{Point: p, Name: p.Name, Driver: p.Driver}
	if o := p.Spec.VolumeOptions; o != nil {
		need.Labels = o.Labels
		if o.DriverConfig != nil {
			need.Options = o.DriverConfig.Options
		}
	}
	return need
}

// finishBind applies what depends on the daemon and the client rather than on the specification.
func (b *builder) finishBind(p *MountPoint) error {
	if p.Type != mount.TypeBind {
		return nil
	}
	if touchesRoot(p.Source, b.in.DataRoot) {
		switch propagation := explicitPropagation(p.Spec); propagation {
		case "":
			p.Propagation = mount.PropagationRSlave
		case mount.PropagationRSlave, mount.PropagationRShared:
		default:
			return invalid(`invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within `+
				`the daemon root, daemon root: %q, bind mount source: %q, propagation: %q`, b.in.DataRoot, p.Spec.Source, propagation)
		}
	}
	if !p.RW && b.in.ReadOnlyNonRecursive {
		if p.Spec.BindOptions == nil {
			p.Spec.BindOptions = &mount.BindOptions{}
		}
		p.Spec.BindOptions.ReadOnlyNonRecursive = true
	}
	return nil
}

func explicitPropagation(m mount.Mount) mount.Propagation {
	if m.BindOptions == nil {
		return ""
	}
	return m.BindOptions.Propagation
}

// touchesRoot reports whether a bind of source shows the data root, or part of it, to the container: such a bind must
// not keep mounts below the root busy in another mount namespace.
func touchesRoot(source, root string) bool {
	return root != "" && (inside(source, root) || inside(root, source))
}

// inside reports whether p is dir or below it.
func inside(p, dir string) bool {
	rel, err := filepath.Rel(dir, p)
	return err == nil && filepath.IsLocal(rel)
}

func (b *builder) addAnonymous(entry string) {
	destination := path.Clean(entry)
	if b.points[destination] != nil {
		return
	}
	if _, isTmpfs := b.in.Tmpfs[destination]; isTmpfs {
		return
	}
	p := &MountPoint{Type: mount.TypeVolume, Destination: destination, RW: true, CopyData: true}
	b.set(p, &VolumeNeed{Point: p, Driver: b.in.VolumeDriver, FromImage: true})
}

func (b *builder) plan() Plan {
	plan := Plan{Points: b.points}
	for _, destination := range b.order {
		plan.Volumes = append(plan.Volumes, b.needs[destination])
	}
	used := map[string]bool{}
	for _, p := range Sorted(b.points) {
		if p.Type == mount.TypeImage && p != b.in.Previous[p.Destination] {
			plan.Images = append(plan.Images, ImageNeed{Point: p, Ref: p.Spec.Source, Layer: b.layers[p]})
		}
		if p.IsVolume() {
			used[p.Name] = true
		}
	}
	for _, p := range Sorted(b.in.Previous) {
		if p.IsVolume() && !used[p.Name] && !slices.Contains(plan.Released, p.Name) {
			plan.Released = append(plan.Released, p.Name)
		}
	}
	return plan
}

// Subpath is what of the volume or image is mounted, relative to its root; "." is all of it.
func (p *MountPoint) Subpath() string {
	switch {
	case p.Spec.VolumeOptions != nil && p.Spec.VolumeOptions.Subpath != "":
		return p.Spec.VolumeOptions.Subpath
	case p.Spec.ImageOptions != nil && p.Spec.ImageOptions.Subpath != "":
		return p.Spec.ImageOptions.Subpath
	}
	return "."
}

// IsVolume reports whether a volume stands behind p. Very old records have no Type.
func (p *MountPoint) IsVolume() bool {
	return p.Name != "" && p.Type != mount.TypeImage && (p.Type == mount.TypeVolume || p.Driver != "")
}

// Sorted returns the mount points in the order in which they are to be mounted: parents before children, and always
// the same.
func Sorted(points map[string]*MountPoint) []*MountPoint {
	return slices.SortedFunc(maps.Values(points), func(a, b *MountPoint) int {
		return cmp.Or(cmp.Compare(depth(a.Destination), depth(b.Destination)), cmp.Compare(a.Destination, b.Destination))
	})
}

func depth(destination string) int { return strings.Count(path.Clean(destination), "/") }
