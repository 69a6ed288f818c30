package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/ids"
)

// loading is one call of Load: the way of an archive's layers into the layer store.
//
// Layers are unpacked beside each other, before they are put on one another, because unpacking is bound by one core
// where it makes many files.
type loading struct {
	s       *Service
	archive *archive
	quiet   bool

	emitting sync.Mutex // one message at a time
	emit     api.Emit

	held   []digest.Digest // chains this load has a reference on
	staged map[digest.Digest]StagedLayer
}

// layerTask is a layer that the store does not have.
type layerTask struct {
	image  digest.Digest
	number int
	blob   blob
	chain  digest.Digest
	parent digest.Digest
	diffID digest.Digest
}

// layers brings the layers of all images into the layer store and holds the uppermost of each.
func (l *loading) layers(ctx context.Context, images []archivedImage) error {
	tasks, err := l.missing(images)
	if err != nil {
		return err
	}
	err = l.stage(ctx, tasks)
	if errdefs.IsNotImplemented(err) {
		return l.register(ctx, tasks)
	}
	if err != nil {
		return err
	}
	// The flush that makes the layers durable should not write the archive as well.
	if err := l.archive.discard(); err != nil {
		return err
	}
	for _, img := range images {
		if err := l.commit(ctx, img); err != nil {
			return fmt.Errorf("load image %s: %w", ids.Short(img.id.Encoded()), err)
		}
	}
	return nil
}

// missing returns the layers that the store does not have, each once and none before its parent, and holds the
// uppermost that it has of each image.
func (l *loading) missing(images []archivedImage) ([]layerTask, error) {
	var tasks []layerTask
	seen := map[digest.Digest]bool{}
	for _, img := range images {
		diffIDs := img.doc.config.RootFS.DiffIDs
		chains := chainIDs(diffIDs)
		have, err := l.holdDeepest(chains)
		if err != nil {
			return nil, err
		}
		for i := have; i < len(chains); i++ {
			if seen[chains[i]] {
				continue
			}
			seen[chains[i]] = true
			task := layerTask{image: img.id, number: i, blob: img.blobs[i], chain: chains[i], diffID: diffIDs[i]}
			if i > 0 {
				task.parent = chains[i-1]
			}
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}

// holdDeepest takes a reference on the uppermost of chains that exists, and returns how many exist.
func (l *loading) holdDeepest(chains []digest.Digest) (have int, err error) {
	for i := len(chains) - 1; i >= 0; i-- {
		_, err := l.s.layers.Acquire(chains[i])
		if err == nil {
			l.held = append(l.held, chains[i])
			return i + 1, nil
		}
		if !errdefs.IsNotFound(err) {
			return 0, fmt.Errorf("hold layer %s: %w", chains[i], err)
		}
	}
	return 0, nil
}

// stage unpacks layers, several at a time. It fails with class NotImplemented when the store wants them in order.
func (l *loading) stage(ctx context.Context, tasks []layerTask) error {
	l.staged = make(map[digest.Digest]StagedLayer, len(tasks))
	var mu sync.Mutex // guards l.staged until the group has ended
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, task := range tasks {
		group.Go(func() error {
			return l.read(ctx, task, func(plain io.Reader) (digest.Digest, error) {
				staged, err := l.s.layers.Stage(ctx, plain)
				if err != nil {
					return "", err
				}
				mu.Lock()
				defer mu.Unlock()
				l.staged[task.chain] = staged
				return staged.DiffID(), nil
			})
		})
	}
	return group.Wait()
}

// commit puts the layers of an image on one another and holds the uppermost.
func (l *loading) commit(ctx context.Context, img archivedImage) error {
	chains := chainIDs(img.doc.config.RootFS.DiffIDs)
	have, err := l.holdDeepest(chains)
	if err != nil || have == len(chains) {
		return err
	}
	var parent digest.Digest
	if have > 0 {
		parent = chains[have-1]
	}
	staged := make([]StagedLayer, 0, len(chains)-have)
	for _, chain := range chains[have:] {
		staged = append(staged, l.staged[chain])
	}
	if _, err := l.s.layers.Commit(ctx, parent, staged...); err != nil {
		return err
	}
	l.held = append(l.held, chains[len(chains)-1])
	return nil
}

// register brings layers into a store that wants them one after the other.
func (l *loading) register(ctx context.Context, tasks []layerTask) error {
	for _, task := range tasks {
		err := l.read(ctx, task, func(plain io.Reader) (digest.Digest, error) {
			info, err := l.s.layers.Register(ctx, plain, task.parent)
			if err != nil {
				return "", err
			}
			l.held = append(l.held, info.ChainID)
			return info.DiffID, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// read feeds the plain bytes of a layer to use and checks the diff id that it returns, and the archive's own digest.
func (l *loading) read(ctx context.Context, task layerTask, use func(plain io.Reader) (digest.Digest, error)) error {
	err := l.readBlob(ctx, task, use)
	if err != nil {
		return fmt.Errorf("load image %s: layer %d: %w", ids.Short(task.image.Encoded()), task.number, err)
	}
	return nil
}

func (l *loading) readBlob(ctx context.Context, task layerTask, use func(plain io.Reader) (digest.Digest, error)) error {
	b := task.blob
	section, err := l.archive.open(b.path)
	if err != nil {
		return err
	}
	if b.size >= 0 && b.size != section.Size() {
		return badArchive("blob %s has %d bytes instead of %d", b.digest, section.Size(), b.size)
	}
	var source io.Reader = contextReader{ctx, section}
	if !l.quiet {
		source = &progressReader{r: source, id: ids.Short(task.diffID.Encoded()), total: section.Size(), emit: l.tell}
	}
	// The layer store digests the plain bytes. Bytes that are compressed here need a digest of their own, which is
	// left out where the two are the same.
	var verify digest.Verifier
	if b.digest != "" && b.digest != task.diffID {
		verify = b.digest.Verifier()
		source = io.TeeReader(source, verify)
	}
	plain, err := decompress(source)
	if err != nil {
		return invalidArchive(ctx, err)
	}
	defer plain.Close()
	diffID, err := use(plain)
	if err != nil {
		return err
	}
	if diffID != task.diffID {
		return badArchive("diff id of the layer is %s, the configuration says %s", diffID, task.diffID)
	}
	if verify == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, source); err != nil {
		return invalidArchive(ctx, err)
	}
	if !verify.Verified() {
		return badArchive("blob %s does not have that digest", b.digest)
	}
	return nil
}

// release gives back what the load holds, and drops what it did not commit.
func (l *loading) release(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, staged := range l.staged {
		errs = append(errs, staged.Discard(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		l.s.log.Warn("drop layers of a failed load", "error", err)
	}
	l.s.releaseLayers(ctx, l.held)
}

// tell sends one message to the client.
func (l *loading) tell(m jsonstream.Message) error {
	l.emitting.Lock()
	defer l.emitting.Unlock()
	return l.emit(m)
}

// progressStep is how many bytes lie between two progress messages at least.
const progressStep = 4 << 20

// progressReader tells the client how far the reading of a layer has come.
type progressReader struct {
	r          io.Reader
	id         string
	done, told int64
	total      int64
	emit       api.Emit
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	if p.done-p.told >= progressStep || (p.done == p.total && p.told < p.done) {
		p.told = p.done
		emitErr := p.emit(jsonstream.Message{
			Status:   "Loading layer",
			ID:       p.id,
			Progress: &jsonstream.Progress{Current: p.done, Total: p.total},
		})
		if emitErr != nil {
			return n, fmt.Errorf("report progress: %w", emitErr)
		}
	}
	return n, err
}
