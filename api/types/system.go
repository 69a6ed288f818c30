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

// VolumeAdoption is the answer of POST /stated/volumes/adopt.
type VolumeAdoption struct {
	Volumes  []AdoptedVolume
	Problems []Finding // records of containers that could not be read
}

// AdoptedVolume is what was found of one volume, in sentences.
type AdoptedVolume struct {
	Name, Driver string
	State        string   // kept, recorded, possible, missing or uncertain
	Found        []string // what is where
	Missing      []string // what is not there, and what brings it
	Lost         []string // what nobody knows any more
}

// VolumeExport says how the export of a volume went. It is the trailer of GET /stated/volumes/{name}/export.
type VolumeExport struct {
	Entries       int64
	Bytes         int64    // contents of the files
	LeftOut       []string // the first of what a tar has no form for; the stream's end has them all
	Consistency   string   // snapshot, paused or live
	Reason        string   `json:",omitempty"` // why it is no snapshot
	Paused        []string `json:",omitempty"` // the first of the containers that were held still
	PausedSeconds float64  `json:",omitempty"`
}

// VolumeImport is the answer of POST /stated/volumes/import.
type VolumeImport struct {
	Volume  json.RawMessage // as GET /volumes/{name} shows it
	Entries int64
	Bytes   int64
	LeftOut []string // what the export had left out, and the file system here does not take
}

// KeyImport is the answer of POST /stated/kv/import.
type KeyImport struct {
	Keys        int // that were brought
	Directories int
	Index       uint64 // of the tree now
}
