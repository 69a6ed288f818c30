package system

import (
	"context"
	"encoding/json"
	"fmt"

	"golang.org/x/sync/errgroup"

	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/api/types"
)

// DiskUsage measures the kinds asked for at the same time. There is no build cache to measure.
func (s *Service) DiskUsage(ctx context.Context, kinds apisystem.DiskUsageKinds) (types.DiskUsage, error) {
	var usage types.DiskUsage
	group, ctx := errgroup.WithContext(ctx)
	measure := func(asked bool, what string, ask func() error) {
		if !asked {
			return
		}
		group.Go(func() error {
			if err := ask(); err != nil {
				return fmt.Errorf("measure disk usage of %s: %w", what, err)
			}
			return nil
		})
	}
	measure(kinds.Containers, "containers", func() (err error) {
		usage.Containers, err = s.o.Containers.Usage(ctx)
		return err
	})
	measure(kinds.Images, "images", func() (err error) {
		usage.Images, usage.LayersSize, err = s.o.Images.Usage(ctx)
		return err
	})
	measure(kinds.Volumes, "volumes", func() (err error) {
		usage.Volumes, err = s.o.Volumes.Usage(ctx)
		return err
	})
	if err := group.Wait(); err != nil {
		return types.DiskUsage{}, err
	}
	if kinds.BuildCache {
		usage.BuildCache = []json.RawMessage{}
	}
	return usage, nil
}
