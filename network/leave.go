package network

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/nft"
)

// Leave removes from the kernel what the engine of this id has made there: bridges and interfaces with its mark, and
// its table of packet rules. It is for a host on which no container of the engine runs, with its daemon stopped. It
// returns the names of what it removed.
func Leave(ctx context.Context, engineID string) ([]string, error) {
	mark := tableName(engineID)
	links, err := netns.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var removed []string
	var errs []error
	for _, l := range links {
		if !strings.HasPrefix(l.Attrs().Alias, mark+":") {
			continue
		}
		// The other end of a pair goes with the first.
		if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("remove interface %s: %w", l.Attrs().Name, err))
			continue
		}
		removed = append(removed, "interface "+l.Attrs().Name)
	}
	table := nft.New(mark)
	if err := table.Destroy(ctx); err != nil {
		errs = append(errs, err)
	} else {
		removed = append(removed, "packet rules "+mark)
	}
	return removed, errors.Join(errs...)
}
