package types

import (
	"encoding/json"
	"time"

	"github.com/moby/moby/api/types/system"
)

// Info is system.Info with the fields that API 1.51 and older versions still have. Those of older versions are nil or
// false, and so left out, unless the request's version has them.
type Info struct {
	system.Info
	KernelMemory    bool `json:",omitempty"`
	KernelMemoryTCP bool `json:",omitempty"`
}

// DiskUsage is the answer of GET /system/df up to API 1.51. A kind that was not asked for is null.
type DiskUsage struct {
	LayersSize int64
	Images     []json.RawMessage
	Containers []json.RawMessage
	Volumes    []json.RawMessage
	BuildCache []json.RawMessage
	// BuilderSize is 0 and present before 1.42.
	BuilderSize *int64 `json:",omitempty"`
}

// PhaseState is how far the opening of a phase has come.
type PhaseState string

const (
	PhaseWaiting PhaseState = "waiting"
	PhaseOpening PhaseState = "opening"
	PhaseOpen    PhaseState = "open"
	PhaseFailed  PhaseState = "failed"
	PhaseClosed  PhaseState = "closed"
)

// Phase is one step of the daemon's start, in the order of opening.
type Phase struct {
	Name  string
	State PhaseState
	// Started is when opening began; the zero time while it waits.
	Started time.Time `json:",omitzero"`
	// Took is how long opening took, or has taken so far, in seconds.
	Took  float64
	Error string `json:",omitempty"`
}

// Finding is something that the daemon found wrong, or that is to be known, and left as it was.
type Finding struct {
	Subsystem string
	Object    string // an id, a name or a path; empty when it concerns the subsystem as a whole
	Text      string
}

// Doctor is the answer of GET /stated/doctor.
type Doctor struct {
	Problems []Finding
	Notes    []Finding // no problem, but worth knowing
}
