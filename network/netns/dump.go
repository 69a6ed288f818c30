package netns

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumpAttempts is how often a listing is begun anew when what it lists changes under it.
const dumpAttempts = 10

// Dump lists kernel objects. The kernel says when they changed while it listed them: the listing is repeated then, and
// when that goes on and on, the last one is what there is.
func Dump[T any](list func() (T, error)) (T, error) {
	var got T
	err := error(netlink.ErrDumpInterrupted)
	for n := 0; n < dumpAttempts && errors.Is(err, netlink.ErrDumpInterrupted); n++ {
		got, err = list()
	}
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil
	}
	return got, err
}
