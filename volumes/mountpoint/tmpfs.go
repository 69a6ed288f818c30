package mountpoint

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// Tmpfs is one tmpfs of a container.
type Tmpfs struct {
	Destination string
	Data        string // mount options, comma-separated, as the user wrote them or as made from a TmpfsOptions
}

// ParseTmpfs reads one entry of HostConfig.Tmpfs (docker run --tmpfs). The options are the runtime's to judge.
func ParseTmpfs(destination, data string) (Tmpfs, error) {
	if err := checkDestination(destination); err != nil {
		return Tmpfs{}, invalid("%v", err)
	}
	return Tmpfs{Destination: destination, Data: data}, nil
}

// AllTmpfs returns every tmpfs of a container by destination: those of HostConfig.Tmpfs and the mount points of that
// type. Mount points on their destinations are not to be mounted otherwise.
func AllTmpfs(hostConfig map[string]string, points map[string]*MountPoint) ([]Tmpfs, error) {
	var list []Tmpfs
	for destination, data := range hostConfig {
		list = append(list, Tmpfs{Destination: destination, Data: data})
	}
	for destination, mp := range points {
		if mp.Type != mount.TypeTmpfs {
			continue
		}
		data, err := tmpfsData(mp.Spec)
		if err != nil {
			return nil, wrongConfig(mp.Spec, err)
		}
		list = append(list, Tmpfs{Destination: destination, Data: data})
	}
	slices.SortFunc(list, func(a, b Tmpfs) int {
		return cmp.Or(cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Data, b.Data))
	})
	return list, nil
}

// tmpfsData returns the mount options of a tmpfs of HostConfig.Mounts.
func tmpfsData(m mount.Mount) (string, error) {
	var words []string
	if m.ReadOnly {
		words = append(words, readOnly)
	}
	o := m.TmpfsOptions
	if o == nil {
		return strings.Join(words, ","), nil
	}
	if o.Mode != 0 {
		words = append(words, fmt.Sprintf("mode=%o", o.Mode))
	}
	if o.SizeBytes != 0 {
		words = append(words, "size="+sizeText(o.SizeBytes))
	}
	for _, option := range o.Options {
		if len(option) < 1 || len(option) > 2 {
			return "", errors.New("invalid option array length")
		}
		if option[0] != "exec" && option[0] != "noexec" {
			return "", errors.New("invalid option: " + option[0])
		}
		words = append(words, strings.Join(option, "="))
	}
	return strings.Join(words, ","), nil
}

// sizeText writes bytes with the largest suffix that keeps the value exact.
func sizeText(bytes int64) string {
	for _, unit := range []struct {
		suffix string
		bytes  int64
	}{{"g", 1 << 30}, {"m", 1 << 20}, {"k", 1 << 10}} {
		if bytes%unit.bytes == 0 {
			return strconv.FormatInt(bytes/unit.bytes, 10) + unit.suffix
		}
	}
	return strconv.FormatInt(bytes, 10)
}
