package overlay2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/internal/atomicfile"
)

// Repair puts the short names and the lists of lower layers right. After a power cut the files that hold them may be
// empty or missing, though the layers are whole.
func (d *Driver) Repair(ctx context.Context, parents map[string]string) ([]string, error) {
	ids, err := d.List()
	if err != nil {
		return nil, err
	}
	r := repair{d: d, parents: parents, linksOf: map[string][]string{}, children: map[string][]string{}, done: map[string]bool{}}
	if err := r.readLinks(); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if p := parents[id]; p != "" {
			r.children[p] = append(r.children[p], id)
		}
	}
	for _, id := range ids { // all short names first, as the lists consist of them
		if err := ctx.Err(); err != nil {
			return r.notes, err
		}
		if err := r.link(id); err != nil {
			return r.notes, err
		}
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return r.notes, err
		}
		if err := r.lower(id); err != nil {
			return r.notes, err
		}
	}
	return r.notes, nil
}

type repair struct {
	d        *Driver
	parents  map[string]string
	children map[string][]string
	linksOf  map[string][]string // short names that lead to a layer
	done     map[string]bool     // layers whose list of lower layers is right
	notes    []string
}

func (r *repair) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *repair) readLinks() error {
	dir := r.d.path(linksDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list short names: %w", err)
	}
	for _, e := range entries {
		target, err := os.Readlink(r.d.path(linksDir, e.Name()))
		if err != nil {
			continue // not a link, so not ours
		}
		id, ok := strings.CutPrefix(target, "../")
		if id, ok2 := strings.CutSuffix(id, "/"+diffDir); ok && ok2 {
			r.linksOf[id] = append(r.linksOf[id], e.Name())
		}
	}
	return nil
}

func (r *repair) link(id string) error {
	if _, err := os.Lstat(r.d.path(id, diffDir)); errors.Is(err, os.ErrNotExist) {
		r.note("layer %s has lost its files: directory %q is missing", id, diffDir)
		return nil
	} else if err != nil {
		return err
	}
	link, err := r.d.link(id)
	if err != nil {
		link = r.guessLink(id)
		if err := atomicfile.Write(r.d.path(id, linkFile), []byte(link), 0o644); err != nil {
			return fmt.Errorf("repair short name of layer %s: %w", id, err)
		}
		r.note("layer %s: short name restored", id)
	}
	if slices.Contains(r.linksOf[id], link) {
		return nil
	}
	at := r.d.path(linksDir, link)
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("repair short name of layer %s: %w", id, err)
	}
	if err := os.Symlink("../"+id+"/"+diffDir, at); err != nil {
		return fmt.Errorf("repair short name of layer %s: %w", id, err)
	}
	r.linksOf[id] = append(r.linksOf[id], link)
	r.note("layer %s: link to it under its short name restored", id)
	return nil
}

// guessLink finds the short name of a layer whose own note of it is lost.
func (r *repair) guessLink(id string) string {
	for _, link := range r.linksOf[id] {
		return link
	}
	for _, child := range r.children[id] {
		if lower, err := r.d.lower(child); err == nil && len(lower) > 0 {
			if link := strings.TrimPrefix(lower[0], linksDir+"/"); validLink(link) {
				return link
			}
		}
	}
	return newLink()
}

func (r *repair) lower(id string) error {
	parent := r.parents[id]
	if parent == "" || r.done[id] {
		return nil
	}
	r.done[id] = true // before the recursion, so that a circle of parents ends
	if !r.d.Exists(parent) {
		r.note("layer %s: the layer below it, %s, is missing", id, parent)
		return nil
	}
	if err := r.lower(parent); err != nil {
		return err
	}
	want, err := r.d.lowerOn(parent)
	if err != nil {
		r.note("layer %s: %v", id, err)
		return nil
	}
	if r.sameLayers(id, want) {
		return nil
	}
	if err := atomicfile.Write(r.d.path(id, lowerFile), []byte(want), 0o644); err != nil {
		return fmt.Errorf("repair list of lower layers of %s: %w", id, err)
	}
	if err := unix.Mkdir(r.d.path(id, workDir), 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("repair work directory of layer %s: %w", id, err)
	}
	r.note("layer %s: list of lower layers restored", id)
	return nil
}

// sameLayers reports whether the layer's own list names the layers of want, perhaps by other short names.
func (r *repair) sameLayers(id, want string) bool {
	have, err := r.d.lower(id)
	if err != nil {
		return false
	}
	wanted := strings.Split(want, ":")
	if len(have) != len(wanted) {
		return false
	}
	for i := range have {
		a, errA := os.Readlink(r.d.path(have[i]))
		b, errB := os.Readlink(r.d.path(wanted[i]))
		if errA != nil || errB != nil || a != b {
			return false
		}
	}
	return true
}

var _ graphdriver.Repairer = (*Driver)(nil)
