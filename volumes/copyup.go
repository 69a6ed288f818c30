package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/internal/projectquota"
)

// A volume is filled in two steps. The image's directory is copied to a stage on the volume's file system, and when
// that is whole and on disk it is renamed from ".partial" to ".ready"; then its entries are moved over one by one.
// After a crash a partial stage is thrown away, and the moving of a ready one goes on.
const (
	copyUpDir     = "copyup"         // in the state directory, when that is on the volume's file system
	copyUpInside  = ".stated-copyup" // in the volume itself otherwise
	stagePartial  = ".partial"
	stageReady    = ".ready"
	copyUpMountID = "copyup-"
)

// CopyUp fills a volume that is empty from sourceDir, a directory of the image with all symbolic links resolved: its
// contents, and its own mode, owner and attributes. A volume that holds anything, and a source that is not there, are
// left as they are. Of several calls at once for one volume, one copies.
//
// Where sourceDir is part of an overlay, layers are the directories that it shows merged; files of theirs are cloned if
// they are on the volume's file system and that can share blocks. Nobody may change them meanwhile.
func (s *Store) CopyUp(ctx context.Context, name, sourceDir string, layers []string) (err error) {
	source, err := os.Lstat(sourceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("failed to populate volume: %w", err)
	}
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return fmt.Errorf("failed to populate volume: %w", err)
	}
	defer unlock()
	e, _, err := s.lookup(ctx, name, "")
	if err != nil {
		return &OpError{Op: "get", Name: name, Err: err}
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return err
	}
	id := copyUpMountID + ids.New()
	path, err := d.Mount(ctx, name, id)
	if err != nil {
		return fmt.Errorf("failed to populate volume: %w", err)
	}
	defer func() {
		if unmountErr := d.Unmount(context.WithoutCancel(ctx), name, id); err == nil {
			err = unmountErr
		}
	}()
	return fill(ctx, path, s.stageFor(name, path), sourceDir, source, layers)
}

// stageFor returns where a copy for the volume at path is prepared, less the suffix.
func (s *Store) stageFor(name, path string) string {
	if canRename(s.stateDir, path) {
		return filepath.Join(s.stateDir, copyUpDir, url.PathEscape(name))
	}
	return filepath.Join(path, copyUpInside)
}

// canRename reports whether a rename from one directory to the other can work: on one mount, and with no quota's
// border between them.
func canRename(a, b string) bool {
	return sameMount(a, b) && projectquota.Inherited(a) == projectquota.Inherited(b)
}

func sameMount(a, b string) bool {
	var sa, sb unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, a, 0, unix.STATX_MNT_ID, &sa) != nil || unix.Statx(unix.AT_FDCWD, b, 0, unix.STATX_MNT_ID, &sb) != nil {
		return false
	}
	return sa.Mask&sb.Mask&unix.STATX_MNT_ID != 0 && sa.Mnt_id == sb.Mnt_id
}

func fill(ctx context.Context, path, stage, sourceDir string, source fs.FileInfo, layers []string) error {
	if _, err := os.Lstat(stage + stageReady); err == nil {
		return moveEntries(path, stage+stageReady)
	}
	if err := os.RemoveAll(stage + stagePartial); err != nil {
		return err
	}
	if empty, err := isEmpty(path); err != nil || !empty {
		return err
	}
	if !source.IsDir() {
		return fmt.Errorf("source %s is not directory", sourceDir)
	}
	empty, err := isEmpty(sourceDir)
	if err != nil {
		return err
	}
	if empty { // by far the most frequent: a VOLUME that the image only names
		return newCopyTree().into(ctx, path, sourceDir, nil)
	}
	if err := prepareStage(ctx, stage, sourceDir, layers); err != nil {
		_ = os.RemoveAll(stage + stagePartial) // the first error is the one to report; the next copy removes it too
		return fmt.Errorf("copy %s for the volume at %s: %w", sourceDir, path, err)
	}
	return moveEntries(path, stage+stageReady)
}

func prepareStage(ctx context.Context, stage, sourceDir string, layers []string) error {
	if err := os.MkdirAll(filepath.Dir(stage), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(stage+stagePartial, 0o700); err != nil {
		return err
	}
	if err := newCopyTree().into(ctx, stage+stagePartial, sourceDir, layers); err != nil {
		return err
	}
	if err := fault.Point("copyup.copied"); err != nil {
		return err
	}
	// One flush for the whole copy, so that no file is found empty after a power cut.
	if err := syncFileSystem(stage + stagePartial); err != nil {
		return err
	}
	if err := os.Rename(stage+stagePartial, stage+stageReady); err != nil {
		return err
	}
	return fault.Point("copyup.ready")
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}

// moveEntries moves what is in ready to path, takes ready's attributes over, and removes ready. What path has under
// the same name stays: somebody wrote it since.
func moveEntries(path, ready string) error {
	var st unix.Stat_t
	if err := unix.Lstat(ready, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: ready, Err: err}
	}
	list, err := os.ReadDir(ready)
	if err != nil {
		return err
	}
	for _, e := range list {
		from, to := filepath.Join(ready, e.Name()), filepath.Join(path, e.Name())
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) { // a file system that cannot refuse: nobody but us knows the volume yet
			err = os.Rename(from, to)
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		if err := fault.Point("copyup.moved"); err != nil {
			return err
		}
	}
	if err := newCopyTree().attributes(place{name: path}, xattrsOf(ready), &st); err != nil {
		return err
	}
	if err := os.RemoveAll(ready); err != nil {
		return err
	}
	if err := copyTimes(place{name: path}, &st); err != nil { // ready may have been in path
		return err
	}
	return fault.Point("copyup.finished")
}

// isEmpty reports whether dir holds nothing but what a copy left there.
func isEmpty(dir string) (bool, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range list {
		if e.Name() != copyUpInside+stagePartial && e.Name() != copyUpInside+stageReady {
			return false, nil
		}
	}
	return true, nil
}

// finishCopyUps goes on where a crash cut copies short. Stages inside volumes wait for the volume's next CopyUp.
func (s *Store) finishCopyUps(ctx context.Context) {
	dir := filepath.Join(s.stateDir, copyUpDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		return // no copy was under way
	}
	for _, e := range list {
		stage := filepath.Join(dir, e.Name())
		if err := s.finishCopyUp(ctx, stage); err != nil {
			slog.Warn("could not complete the filling of a volume", "stage", stage, "error", err)
		}
	}
}

func (s *Store) finishCopyUp(ctx context.Context, stage string) error {
	escaped, ready := strings.CutSuffix(filepath.Base(stage), stageReady)
	name, err := url.PathUnescape(escaped)
	e := s.entry(name)
	if !ready || err != nil || e == nil || !s.owned(e.driver) {
		return os.RemoveAll(stage)
	}
	if !canRename(stage, e.path()) {
		return fmt.Errorf("the data of volume %s is elsewhere now", name)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return moveEntries(e.path(), stage)
}
