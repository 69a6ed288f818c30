package mountpoint

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// modeGroup classes the words of a mode, as in "ro,z". A mode has at most one word of each group.
type modeGroup int

const (
	unknownGroup modeGroup = iota
	accessGroup
	labelGroup
	propagationGroup
	copyGroup
	consistencyGroup
)

const (
	readOnly = "ro"
	noCopy   = "nocopy"
	// sharedLabel is filled in for named volumes of the local driver that have no mode.
	sharedLabel = "z"
)

func groupOf(word string) modeGroup {
	switch {
	case word == "rw" || word == readOnly:
		return accessGroup
	case word == sharedLabel || word == "Z":
		return labelGroup
	case isPropagation(mount.Propagation(word)):
		return propagationGroup
	case word == noCopy:
		return copyGroup
	case word == string(mount.ConsistencyFull), word == string(mount.ConsistencyCached), word == string(mount.ConsistencyDelegated):
		return consistencyGroup
	}
	return unknownGroup
}

func isPropagation(p mount.Propagation) bool { return slices.Contains(mount.Propagations, p) }

// validMode reports whether mode is empty or a comma-separated list of words of different groups.
func validMode(mode string) bool {
	if mode == "" {
		return true
	}
	var seen [consistencyGroup + 1]bool
	for word := range strings.SplitSeq(mode, ",") {
		g := groupOf(word)
		if g == unknownGroup || seen[g] {
			return false
		}
		seen[g] = true
	}
	return true
}

// wordOf returns mode's word of the group, or "".
func wordOf(mode string, g modeGroup) string {
	for word := range strings.SplitSeq(mode, ",") {
		if groupOf(word) == g {
			return word
		}
	}
	return ""
}

// Writable reports whether a valid mode leaves the mount writable.
func Writable(mode string) bool { return validMode(mode) && wordOf(mode, accessGroup) != readOnly }

// Label is the SELinux label that what is mounted gets: "z" for one that containers share, "Z" for one of this
// container alone, and "" for none.
func (p *MountPoint) Label() string { return wordOf(p.Mode, labelGroup) }
