package network

import (
	"context"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// zones keeps the files of names up to date.
type zones struct {
	writer ZoneWriter
	dir    string

	mu sync.Mutex // held while a file is written, so that files follow each other in the order of the changes
}

func (z *zones) init(w ZoneWriter, dir string) { z.writer, z.dir = w, dir }

func (z *zones) path(networkID string) string { return filepath.Join(z.dir, networkID) }

// served says whether a network's names are served by the containers' own resolvers.
func (n *network) served() bool {
	return n.drv.Traits().Addresses && !isPredefined(n.name())
}

// write replaces the files of networks by what their endpoints say now.
func (c *Controller) writeZones(ctx context.Context, networks ...*network) {
	if c.zones.writer == nil {
		return
	}
	c.zones.mu.Lock()
	defer c.zones.mu.Unlock()
	for _, n := range networks {
		if !n.served() {
			continue
		}
		if err := c.zones.writer.WriteZone(c.zones.path(n.id()), c.zone(n)); err != nil {
			// The containers keep their connection; only the names are not up to date.
			slog.ErrorContext(ctx, "names of a network are out of date", "network", n.name(), "error", err)
		}
	}
}

func (c *Controller) zone(n *network) Zone {
	z := Zone{Records: map[string][]netip.Addr{}, Reverse: map[string]string{}}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*endpoint, 0, len(n.endpoints))
	for _, e := range n.endpoints {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *endpoint) int { return strings.Compare(a.id(), b.id()) })
	for _, e := range list {
		names := e.obj.doc.DNSNames
		for _, p := range []netip.Prefix{e.obj.doc.addr4(), e.obj.doc.addr6()} {
			if !p.IsValid() {
				continue
			}
			if len(names) > 0 {
				z.Reverse[p.Addr().String()] = strings.ToLower(names[0] + "." + n.name())
			}
			for _, name := range names {
				for _, full := range []string{name, name + "." + n.name()} {
					full = strings.ToLower(full)
					if !slices.Contains(z.Records[full], p.Addr()) {
						z.Records[full] = append(z.Records[full], p.Addr())
					}
				}
			}
		}
	}
	return z
}

// remove deletes the file of a network that is gone.
func (z *zones) remove(ctx context.Context, networkID string) {
	if z.writer == nil {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if err := z.writer.RemoveZone(z.path(networkID)); err != nil {
		slog.ErrorContext(ctx, "names of a removed network stay", "network", networkID, "error", err)
	}
}
