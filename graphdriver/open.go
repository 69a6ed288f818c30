package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
)

// Options choose and open a driver.
type Options struct {
	Root  string   // the data root; a driver's home is Root/<name>
	Name  string   // "" lets prior state, and then the host's abilities, decide
	Opts  []string // key=value
	IDMap user.IdentityMapping
}

// priority is the order in which drivers are tried when nobody says which.
var priority = [...]string{"overlay2", "fuse-overlayfs", "btrfs", "zfs", "vfs"}

// onlyPrior are the drivers that are never chosen for a new data root.
var onlyPrior = [...]string{"devicemapper"}

// Open chooses a driver and opens it.
//
// A driver asked for by name is opened or its error returned. Else one that has state below the root is opened, and
// when that fails so does Open, because with another driver all images would seem gone; state of several drivers is
// an error. Else the first that the host supports is taken. vfs never counts as prior state.
func Open(ctx context.Context, opt Options, table map[string]Constructor) (Driver, error) {
	if opt.Name != "" {
		if opt.Name == "aufs" || opt.Name == "overlay" {
			return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("[graphdriver] ERROR: the %s storage-driver has been deprecated and removed; visit https://docs.docker.com/go/storage-driver/ for more information", opt.Name))
		}
		return openNamed(ctx, opt, opt.Name, table)
	}
	prior, err := priorDrivers(opt.Root, table)
	if err != nil {
		return nil, err
	}
	if len(prior) > 0 {
		d, err := openNamed(ctx, opt, prior[0], table)
		if err != nil {
			return nil, fmt.Errorf("the data root has images and containers of the storage driver %s, which cannot be used (another driver would not see them): %w", prior[0], err)
		}
		if len(prior) > 1 {
			slices.Sort(prior)
			_ = d.Close() // nothing was done with it
			return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s contains several valid graphdrivers: %s; cleanup or explicitly choose storage driver (-s <DRIVER>)", opt.Root, strings.Join(prior, ", ")))
		}
		return d, nil
	}
	for _, name := range priority {
		if table[name] == nil {
			continue
		}
		d, err := openNamed(ctx, opt, name, table)
		if NotSupported(err) {
			slog.DebugContext(ctx, "storage driver passed over", "driver", name, "err", err)
			continue
		}
		return d, err
	}
	return nil, errdefs.ErrFailedPrecondition.WithMessage("no supported storage driver found")
}

// NotSupported reports whether err means that the host cannot have the driver, as opposed to a failure of one that
// it can have.
func NotSupported(err error) bool {
	return errors.Is(err, ErrNotSupported) || errors.Is(err, ErrPrerequisites) || errors.Is(err, ErrIncompatibleFS)
}

func openNamed(ctx context.Context, opt Options, name string, table map[string]Constructor) (Driver, error) {
	open := table[name]
	if open == nil {
		return nil, fmt.Errorf("storage driver %q: not among those of this program (%s): %w", name, strings.Join(names(table), ", "), ErrNotSupported)
	}
	d, err := open(ctx, Config{Home: filepath.Join(opt.Root, name), Options: opt.Opts, IDMap: opt.IDMap})
	if err != nil {
		return nil, fmt.Errorf("open storage driver %s: %w", name, err)
	}
	return d, nil
}

func names(table map[string]Constructor) []string {
	var names []string
	for name := range table {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// priorDrivers returns the drivers that have state below root, in the order of priority.
func priorDrivers(root string, table map[string]Constructor) ([]string, error) {
	known := append(slices.Clone(priority[:]), onlyPrior[:]...)
	for _, name := range names(table) {
		if !slices.Contains(known, name) {
			known = append(known, name)
		}
	}
	var prior []string
	for _, name := range known {
		if name == "vfs" {
			continue
		}
		dir, err := os.Open(filepath.Join(root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for state of storage driver %s: %w", name, err)
		}
		_, err = dir.Readdirnames(1)
		_ = dir.Close() // read only
		if errors.Is(err, io.EOF) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for state of storage driver %s: %w", name, err)
		}
		prior = append(prior, name)
	}
	return prior, nil
}

// ParseOption splits a key=value option. The key comes back in lower case.
func ParseOption(opt string) (key, value string, err error) {
	key, value, ok := strings.Cut(opt, "=")
	if !ok {
		return "", "", fmt.Errorf("unable to parse storage-opt key/value: %s: %w", opt, errdefs.ErrInvalidArgument)
	}
	return strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(value), nil
}
