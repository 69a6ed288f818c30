package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/volumes/stream"
)

// ImportRequest narrows Import.
type ImportRequest struct {
	Name string // empty: the one that the volume had
	// DataOnly makes an ordinary local volume of the stream's files and labels, whatever driver and options it names.
	DataOnly bool
}

// Import makes a new local volume of a stream. The volume appears whole and durable, or not at all; a name that is
// taken is refused.
func (s *Store) Import(ctx context.Context, req ImportRequest, in io.Reader) (Volume, stream.Tail, error) {
	e, tail, err := s.importStream(ctx, req, in)
	if err != nil {
		return Volume{}, stream.Tail{}, &OpError{Op: "import", Name: req.Name, Err: err}
	}
	s.holdUsers(ctx, e)
	s.events.Publish(events.VolumeEventType, events.ActionCreate, e.name, map[string]string{"driver": e.driver})
	return e.volume(), tail, nil
}

func (s *Store) importStream(ctx context.Context, req ImportRequest, in io.Reader) (*entry, stream.Tail, error) {
	r, err := stream.NewReader(in)
	if err != nil {
		return nil, stream.Tail{}, err
	}
	rec, err := importedRecord(req, r.Head())
	if err != nil {
		return nil, stream.Tail{}, err
	}
	if err := s.checkFree(ctx, rec.Name); err != nil { // before all of a large stream is read
		return nil, stream.Tail{}, err
	}
	d := s.drivers[DefaultDriver]
	staged, err := d.Stage(ctx, rec.Name, rec.Options)
	if err != nil {
		return nil, stream.Tail{}, err
	}
	tail, err := fillStaged(ctx, staged, r)
	if err != nil {
		return nil, stream.Tail{}, undone(ctx, staged, err)
	}
	e, err := s.publishImport(ctx, staged, d, rec)
	return e, tail, err
}

// importedRecord is the record of the volume that a stream becomes.
func importedRecord(req ImportRequest, head stream.Head) (record, error) {
	rec := record{Name: cmp.Or(req.Name, head.Name), Driver: DefaultDriver, Labels: head.Labels}
	if req.Name != "" {
		rec.Labels = maps.Clone(head.Labels)
		delete(rec.Labels, AnonymousLabel) // who gives a name does not want it pruned as nobody's
	}
	if req.DataOnly {
		return rec, nil
	}
	const advice = "to make an ordinary local volume of its files, import it with --data-only"
	switch {
	case head.Driver != DefaultDriver:
		return rec, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the stream is of a volume of driver %q, and only local ones can be imported; %s", head.Driver, advice))
	case len(head.Options) > 0:
		return rec, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the stream is of a volume with the mount options %v: its files are where these lead, and are not overwritten; %s", head.Options, advice))
	}
	return rec, nil
}

// checkFree refuses a name that some volume has.
func (s *Store) checkFree(ctx context.Context, name string) error {
	taken := s.entry(name) != nil
	if !taken {
		_, info, err := s.whereIs(ctx, name, "")
		if err != nil {
			return err
		}
		taken = info != nil
	}
	if !taken {
		_, err := s.drivers[DefaultDriver].Get(ctx, name)
		taken = !errdefs.IsNotFound(err)
	}
	if taken {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("there is a volume %s already: remove it with \"docker volume rm %s\", or import under another name with \"stated volume import NAME\"", name, name))
	}
	return nil
}

// fillStaged unpacks the stream and makes it durable, before anything tells of it.
func fillStaged(ctx context.Context, staged Staged, r *stream.Reader) (stream.Tail, error) {
	fillable, ok := staged.(Fillable)
	if !ok {
		return stream.Tail{}, errdefs.ErrNotImplemented.WithMessage("the driver cannot fill a volume before it is made")
	}
	tail, err := r.Extract(ctx, fillable.DataPath())
	if err == nil {
		err = fault.Point("volumes.import.filled")
	}
	if err != nil {
		return stream.Tail{}, err
	}
	return tail, syncFileSystem(fillable.DataPath())
}

// publishImport records the volume and publishes it. Should the host go down in between, the start forgets the record:
// unlike a new volume this one is nothing without its files.
func (s *Store) publishImport(ctx context.Context, staged Staged, d Driver, rec record) (*entry, error) {
	unlock, err := s.names.lock(ctx, rec.Name)
	if err != nil {
		return nil, undone(ctx, staged, err)
	}
	defer unlock()
	if err := s.checkFree(ctx, rec.Name); err != nil {
		return nil, undone(ctx, staged, err)
	}
	ctx = context.WithoutCancel(ctx)
	info, err := s.recordPublish(ctx, staged, &change{name: rec.Name, record: &rec, mark: &mark{Op: markImport}})
	if err != nil {
		return nil, err
	}
	if err := d.Sync(ctx); err != nil {
		return nil, errors.Join(err, s.meta.commit(&change{name: rec.Name}), d.Remove(ctx, rec.Name, ""))
	}
	s.meta.settle(rec.Name)
	s.dropTombstone(rec.Name)
	e := newRecorded(rec, d, info)
	s.setEntry(e)
	return e, nil
}
