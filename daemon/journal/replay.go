package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// wish is what the journal wants a path to be, and which contents it may replace to get there.
type wish struct {
	step  step
	known []string
}

// replay brings the files to where the last process had them, or wanted them.
func (j *Journal) replay() (Report, error) {
	var report Report
	var entries []entry
	for _, path := range []string{j.oldPath(), j.path()} {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return report, err
		}
		more, torn := decode(data)
		entries = append(entries, more...)
		report.Torn = report.Torn || torn
	}
	if len(entries) > 0 {
		j.seq = entries[len(entries)-1].Seq
		report.Rebooted = entries[len(entries)-1].Boot != j.boot
	}
	for _, w := range wishes(entries, j.boot) {
		switch done, err := j.fulfil(w); {
		case err != nil:
			return report, err
		case done == replayed:
			report.Replayed = append(report.Replayed, w.step.Path)
		case done == kept:
			report.Kept = append(report.Kept, w.step.Path)
		}
	}
	return report, nil
}

// wishes folds entries into the last word on each path, in the order of those last words.
//
// An entry of this boot whose files were in place when a later one was written needs nothing: no power was cut, and
// what has changed since was changed by somebody else.
func wishes(entries []entry, boot string) []wish {
	var settled uint64
	for _, e := range entries {
		if e.Boot == boot {
			settled = max(settled, e.Applied)
		}
	}
	last := map[string]*wish{}
	var order []string
	for _, e := range entries {
		done := e.Boot == boot && e.Seq <= settled
		for _, s := range e.Changes {
			order = slices.DeleteFunc(order, func(p string) bool {
				return p == s.Path || (s.Remove && strings.HasPrefix(p, s.Path+"/"))
			})
			w := &wish{step: s}
			if old := last[s.Path]; old != nil && !s.Remove {
				w.known = append(old.known, digest(old.step.Data))
			}
			if s.Before != "" {
				w.known = append(w.known, s.Before)
			}
			last[s.Path] = w
			if !done {
				order = append(order, s.Path)
			}
		}
	}
	out := make([]wish, 0, len(order))
	for _, path := range order {
		out = append(out, *last[path])
	}
	return out
}

type outcome int

const (
	inPlace outcome = iota
	replayed
	kept
)

func (j *Journal) fulfil(w wish) (outcome, error) {
	path := filepath.Join(j.root, w.step.Path)
	if w.step.Remove {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return inPlace, nil
		}
		return replayed, j.apply(w.step)
	}
	have, err := os.ReadFile(path)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return inPlace, err
	case err == nil && bytes.Equal(have, w.step.Data):
		return inPlace, nil
	case err == nil && !damaged(path, have) && !slices.Contains(w.known, digest(have)):
		return kept, nil
	}
	return replayed, j.apply(w.step)
}

// damaged reports content that no program wrote on purpose: nothing, zeros, or a JSON file that is none.
func damaged(path string, data []byte) bool {
	if len(bytes.Trim(data, "\x00")) == 0 {
		return true
	}
	return filepath.Ext(path) == ".json" && !json.Valid(data)
}
