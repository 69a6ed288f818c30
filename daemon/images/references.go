package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/internal/atomicfile"
)

// refSet is the content of repositories.json at one instant. It is never changed: with makes another.
type refSet struct {
	repos map[string]map[string]digest.Digest // familiar name -> familiar reference -> image, as on disk
	byID  map[digest.Digest][]reference.Named // sorted by full text
}

// refEdit sets a reference to an image, or removes it when id is empty.
type refEdit struct {
	ref reference.Named
	id  digest.Digest
}

// repositories is the form of repositories.json.
type repositories struct {
	Repositories map[string]map[string]digest.Digest
}

var errBadRepositories = errors.New("repositories.json is damaged")

// readRefs reads repositories.json. Its error wraps fs.ErrNotExist or errBadRepositories where they apply.
func readRefs(path string) (*refSet, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file repositories
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRepositories, err)
	}
	return newRefSet(file.Repositories), nil
}

func newRefSet(repos map[string]map[string]digest.Digest) *refSet {
	set := &refSet{repos: repos, byID: map[digest.Digest][]reference.Named{}}
	if set.repos == nil {
		set.repos = map[string]map[string]digest.Digest{}
	}
	for _, repo := range set.repos {
		for text, id := range repo {
			// A text that is no reference is kept on disk as it was found, and leads nowhere.
			if ref, err := reference.ParseNormalizedNamed(text); err == nil {
				set.byID[id] = append(set.byID[id], ref)
			}
		}
	}
	for _, refs := range set.byID {
		slices.SortFunc(refs, compareRefs)
	}
	return set
}

func compareRefs(a, b reference.Named) int { return strings.Compare(a.String(), b.String()) }

// with returns the set after edits.
func (s *refSet) with(edits []refEdit) *refSet {
	next := &refSet{repos: maps.Clone(s.repos), byID: maps.Clone(s.byID)}
	copied := map[string]bool{}
	for _, edit := range edits {
		ref := stored(edit.ref)
		name, text := reference.FamiliarName(ref), reference.FamiliarString(ref)
		if !copied[name] {
			copied[name] = true
			next.repos[name] = maps.Clone(next.repos[name])
		}
		repo := next.repos[name]
		if old, found := repo[text]; found {
			delete(repo, text)
			next.setByID(old, slices.DeleteFunc(slices.Clone(next.byID[old]), func(r reference.Named) bool {
				return reference.FamiliarString(r) == text
			}))
		}
		switch {
		case edit.id != "":
			if repo == nil {
				repo = map[string]digest.Digest{}
				next.repos[name] = repo
			}
			repo[text] = edit.id
			refs := append(slices.Clone(next.byID[edit.id]), ref)
			slices.SortFunc(refs, compareRefs)
			next.setByID(edit.id, refs)
		case len(repo) == 0:
			delete(next.repos, name)
		}
	}
	return next
}

func (s *refSet) setByID(id digest.Digest, refs []reference.Named) {
	if len(refs) == 0 {
		delete(s.byID, id)
		return
	}
	s.byID[id] = refs
}

// write replaces repositories.json and returns when it is durable. A previous generation is kept at last, unless
// that is empty.
func (s *refSet) write(path, last string) error {
	data, err := json.Marshal(repositories{s.repos})
	if err != nil {
		return fmt.Errorf("encode repositories: %w", err)
	}
	if last != "" {
		keepGeneration(path, last)
	}
	return atomicfile.Write(path, data, 0o600)
}

// keepGeneration links path to last. It is a convenience for repair, so its failure is nobody's error.
func keepGeneration(path, last string) {
	tmp := last + ".tmp"
	_ = os.Remove(tmp)
	if os.Link(path, tmp) == nil {
		_ = os.Rename(tmp, last)
	}
}

// get returns the image that ref names.
func (s *refSet) get(ref reference.Named) (digest.Digest, bool) {
	ref = stored(ref)
	id, found := s.repos[reference.FamiliarName(ref)][reference.FamiliarString(ref)]
	return id, found
}

// byName returns the references of one repository, sorted, with their images.
func (s *refSet) byName(name reference.Named) []refEdit {
	var found []refEdit
	for text, id := range s.repos[reference.FamiliarName(name)] {
		if ref, err := reference.ParseNormalizedNamed(text); err == nil {
			found = append(found, refEdit{ref, id})
		}
	}
	slices.SortFunc(found, func(a, b refEdit) int { return compareRefs(a.ref, b.ref) })
	return found
}

// names returns an image's tags and digests in familiar form.
func (s *refSet) names(id digest.Digest) (tags, digests []string) {
	for _, ref := range s.byID[id] {
		if isDigest(ref) {
			digests = append(digests, reference.FamiliarString(ref))
		} else {
			tags = append(tags, reference.FamiliarString(ref))
		}
	}
	return tags, digests
}

// stored returns the form in which a reference is kept: with a tag or a digest, and with a digest only the digest.
func stored(ref reference.Named) reference.Named {
	if canonical, ok := ref.(reference.Canonical); ok {
		if _, tagged := ref.(reference.Tagged); tagged {
			if trimmed, err := reference.WithDigest(reference.TrimNamed(ref), canonical.Digest()); err == nil {
				return trimmed
			}
		}
		return ref
	}
	return reference.TagNameOnly(ref)
}

func isDigest(ref reference.Named) bool {
	_, ok := ref.(reference.Canonical)
	return ok
}

// checkName refuses names that could be taken for an id.
func checkName(ref reference.Named) error {
	if reference.FamiliarName(ref) == string(digest.Canonical) {
		return errdefs.ErrInvalidArgument.WithMessage("refusing to create an ambiguous tag using digest algorithm as name")
	}
	return nil
}

// loadRefs reads repositories.json or creates it. A damaged file is set aside and replaced by the previous
// generation, or by nothing; the problem says which.
func loadRefs(path, last string) (refs *refSet, damaged bool, problem *Problem, err error) {
	refs, err = readRefs(path)
	switch {
	case err == nil:
		return refs, false, nil, nil
	case errors.Is(err, fs.ErrNotExist):
		refs = newRefSet(nil)
		return refs, false, nil, refs.write(path, "")
	case !errors.Is(err, errBadRepositories):
		return nil, false, nil, fmt.Errorf("read names of images: %w", err)
	}
	aside := path + ".damaged"
	if last != "" {
		aside = last + ".damaged" // the driver's directory holds Docker's files only
	}
	_ = os.Remove(aside) // an older one, or none
	if linkErr := os.Link(path, aside); linkErr != nil {
		return nil, false, nil, fmt.Errorf("set aside damaged %s: %w", path, linkErr)
	}
	p := &Problem{Err: fmt.Errorf("%w; it was set aside as %s and names given to images since the previous generation are lost", err, aside)}
	refs = newRefSet(nil)
	if last != "" {
		if previous, lastErr := readRefs(last); lastErr == nil {
			refs = previous
		}
	}
	return refs, true, p, refs.write(path, "")
}
