package adopt

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"stated.dev/stated/internal/ids"
)

// VolumeClaim is a volume that a container's record names.
type VolumeClaim struct {
	Container   string // its name, or id where it has none
	Destination string
	Volume      string
	Driver      string
	// Anonymous says that the volume was made for a container, and is named by nobody. Labels are those that the record
	// asks for.
	Anonymous bool
	Labels    map[string]string
}

// VolumeClaims reads from the records of all containers below a data root which volumes they need. A record that cannot
// be read is returned as an Item, and claims nothing.
func VolumeClaims(root string) ([]VolumeClaim, []Item, error) {
	paths, err := filepath.Glob(filepath.Join(root, "containers", "*", "config.v2.json"))
	if err != nil {
		return nil, nil, err
	}
	var claims []VolumeClaim
	var unread []Item
	for _, path := range paths {
		id := filepath.Base(filepath.Dir(path))
		data, err := os.ReadFile(path)
		var found []VolumeClaim
		if err == nil {
			found, err = claimsOf(id, data)
		}
		if err != nil {
			unread = append(unread, Item{Subsystem: Containers, Object: id, Text: fmt.Sprintf("its record, config.v2.json, cannot be read: %v", err)})
			continue
		}
		claims = append(claims, found...)
	}
	slices.SortFunc(claims, func(a, b VolumeClaim) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Container, b.Container), cmp.Compare(a.Destination, b.Destination))
	})
	return claims, unread, nil
}

// claimsOf reads a container's record.
func claimsOf(id string, data []byte) ([]VolumeClaim, error) {
	var r struct {
		Name        string
		MountPoints map[string]*struct {
			Name, Driver string
			Spec         struct {
				Source        string
				VolumeOptions *struct{ Labels map[string]string }
			}
		}
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	var list []VolumeClaim
	for dest, m := range r.MountPoints {
		if m == nil || m.Name == "" {
			continue
		}
		c := VolumeClaim{Container: cmp.Or(strings.TrimPrefix(r.Name, "/"), id), Destination: dest, Volume: m.Name, Driver: m.Driver,
			Anonymous: m.Spec.Source == "" && ids.Valid(m.Name)} // an old record has no source of named ones either
		if m.Spec.VolumeOptions != nil {
			c.Labels = m.Spec.VolumeOptions.Labels
		}
		list = append(list, c)
	}
	return list, nil
}
