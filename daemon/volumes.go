package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	router "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/adopt"
	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/plugin"
)

// AdoptVolumes records volumes that have no record, for the containers of the data root.
func (d *Daemon) AdoptVolumes(ctx context.Context, req router.AdoptRequest) (types.VolumeAdoption, error) {
	return adoptVolumes(ctx, d.volumes, d.cfg.Root, req)
}

// AdoptVolumesOffline is AdoptVolumes for a daemon that is stopped. It opens the volumes as a start would, so that what
// a crash left half made is completed first, and touches no container.
func AdoptVolumesOffline(ctx context.Context, cfg Config, log *slog.Logger, req router.AdoptRequest) (_ types.VolumeAdoption, err error) {
	if err := cfg.fillAndCheck(); err != nil {
		return types.VolumeAdoption{}, err
	}
	if _, err := os.Stat(cfg.Root); err != nil {
		return types.VolumeAdoption{}, fmt.Errorf("find the data root: %w", err)
	}
	lock, err := lockRoot(cfg.Root, log)
	if err != nil {
		return types.VolumeAdoption{}, err
	}
	var opened closers
	opened.add(lock)
	defer func() { err = errors.Join(err, opened.Close()) }()
	j, _, err := journal.Open(cfg.Root, filepath.Join(cfg.Root, stateDir), log) // brings the containers' records to their last state
	if err != nil {
		return types.VolumeAdoption{}, err
	}
	opened.add(j)
	opts := volumeOptions(cfg)
	opts.Finder = plugin.New(plugin.Options{})
	store, err := volumes.Open(ctx, opts)
	if err != nil {
		return types.VolumeAdoption{}, err
	}
	opened.add(store)
	return adoptVolumes(ctx, store, cfg.Root, req)
}

func adoptVolumes(ctx context.Context, store *volumes.Store, root string, req router.AdoptRequest) (types.VolumeAdoption, error) {
	claims, unread, err := adopt.VolumeClaims(root)
	if err != nil {
		return types.VolumeAdoption{}, err
	}
	doc := types.VolumeAdoption{Volumes: []types.AdoptedVolume{}, Problems: []types.Finding{}}
	for _, u := range unread {
		doc.Problems = append(doc.Problems, types.Finding(u))
	}
	ask := volumes.AdoptRequest{Names: req.Names, DryRun: req.DryRun}
	for _, c := range claims {
		ask.Claims = append(ask.Claims, volumes.Claim(c))
	}
	list, err := store.Adopt(ctx, ask)
	if err != nil {
		return types.VolumeAdoption{}, err
	}
	for _, a := range list {
		doc.Volumes = append(doc.Volumes, types.AdoptedVolume{Name: a.Name, Driver: a.Driver, State: string(a.State), Found: a.Found, Missing: a.Missing, Lost: a.Lost})
	}
	return doc, nil
}
