package network

import (
	"net/netip"

	"github.com/moby/moby/api/types/events"
)

// Publisher takes what clients of the event stream are told.
type Publisher interface {
	Publish(typ events.Type, action events.Action, id string, attrs map[string]string)
}

// ZoneWriter replaces the file that containers' resolvers read a network's names from.
type ZoneWriter interface {
	WriteZone(path string, z Zone) error
	RemoveZone(path string) error
}

// Zone is the names of one network: addresses by lower-case name, and the name by address.
type Zone struct {
	Records map[string][]netip.Addr
	Reverse map[string]string
}
