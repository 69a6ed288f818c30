package subid

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// Range is a run of ids on the host.
type Range struct{ First, Count uint32 }

// entry is one line of a file of ranges.
type entry struct {
	owner string
	Range
}

// Parse returns the ranges, in the file's order, of lines whose first field is one of owners: a user's name and its
// number. Lines are of the form OWNER:FIRST:COUNT. A line of theirs that cannot be understood is an error; other
// people's lines are nobody's concern here.
func Parse(text []byte, owners ...string) ([]Range, error) {
	var ranges []Range
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		e, err := parseLine(line)
		for _, owner := range owners {
			if e.owner != owner || owner == "" {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("line %d, %q: %w", n, strings.TrimSpace(line), err)
			}
			ranges = append(ranges, e.Range)
			break
		}
	}
	return ranges, nil
}

// parseLine reads one line. The owner is set even where the rest is wrong; it is empty in a comment or an empty line.
func parseLine(line string) (entry, error) {
	line = strings.TrimSpace(line)
	if strings.HasPrefix(line, "#") {
		return entry{}, errors.New("a comment")
	}
	fields := strings.Split(line, ":")
	e := entry{owner: fields[0]}
	if len(fields) != 3 {
		return e, errors.New("want OWNER:FIRST:COUNT")
	}
	first, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return e, errors.New("the first id is no number of 32 bits")
	}
	count, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil || count == 0 {
		return e, errors.New("the count is no number of 32 bits above 0")
	}
	switch {
	case first == 0:
		return e, errors.New("the range has the id 0, which is the host's root")
	case first+count > math.MaxUint32: // the highest id means "none"
		return e, errors.New("the range ends above the highest id")
	}
	e.Range = Range{First: uint32(first), Count: uint32(count)}
	return e, nil
}

// maxMaps is how many ranges the kernel takes.
const maxMaps = 340

// Map maps the ids from 0 on to the ranges, one after the other.
func Map(ranges []Range) ([]user.IDMap, error) {
	if len(ranges) > maxMaps {
		return nil, fmt.Errorf("%d ranges, and the kernel takes %d: join some", len(ranges), maxMaps)
	}
	var maps []user.IDMap
	next := int64(0)
	for _, r := range ranges {
		m := user.IDMap{ID: next, ParentID: int64(r.First), Count: int64(r.Count)}
		for _, other := range maps {
			if m.ParentID < other.ParentID+other.Count && other.ParentID < m.ParentID+m.Count {
				return nil, fmt.Errorf("the ranges that begin with %d and %d overlap", other.ParentID, m.ParentID)
			}
		}
		if next += m.Count; next > math.MaxUint32 {
			return nil, errors.New("they are more than there are ids")
		}
		maps = append(maps, m)
	}
	return maps, nil
}
