package volumes

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/volume"
)

// AnonymousLabel is on every volume that was created without a name.
const AnonymousLabel = "com.docker.volume.anonymous"

// Volume is what the store tells of a volume. Its maps belong to the store and must not be changed.
type Volume struct {
	Name, Driver, Mountpoint, Scope string

	CreatedAt       time.Time
	Labels, Options map[string]string // nil when none were given, which the API shows as null
	Status          map[string]any    // only from Get, and only if the driver tells any
}

// API returns v as the Engine API shows it.
func (v Volume) API() volume.Volume {
	return volume.Volume{
		Name:       v.Name,
		Driver:     v.Driver,
		Mountpoint: v.Mountpoint,
		Scope:      v.Scope,
		CreatedAt:  v.CreatedAt.Format(time.RFC3339),
		Labels:     v.Labels,
		Options:    v.Options,
		Status:     v.Status,
	}
}

// encode returns v as the line of JSON that the API answers with.
func (v Volume) encode() json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v.API()); err != nil {
		// Only Status holds values of any type, and they came from JSON.
		panic("encode volume " + v.Name + ": " + err.Error())
	}
	return b.Bytes()
}

// entry is a volume that the store knows. All but the guarded fields is fixed once the entry is in the store's map.
type entry struct {
	name, driver    string
	labels, options map[string]string
	recorded        bool // it is in the database, not only on the disk
	unfinished      bool // guarded by the name's lock: its creation was recorded, and nobody has seen it made
	facts           sync.Mutex
	mountpoint      string    // guarded by facts; empty until the driver told
	scope           string    // guarded by facts
	createdAt       time.Time // guarded by facts; zero until somebody asked
	encoded         atomic.Pointer[json.RawMessage]
	referenced      bool                 // guarded by Store.mu: somebody held it since this process knows it
	refs            map[string]time.Time // guarded by Store.mu: who holds the volume, since when
}

// record returns what the database keeps of e.
func (e *entry) record() *record {
	return &record{Name: e.name, Driver: e.driver, Labels: e.labels, Options: e.options}
}

func newEntry(r record, d Driver, info Info) *entry {
	return &entry{
		name:       r.Name,
		driver:     r.Driver,
		mountpoint: info.Mountpoint,
		scope:      d.Traits().Scope,
		labels:     maps.Clone(r.Labels),
		options:    maps.Clone(r.Options),
		createdAt:  info.CreatedAt,
	}
}

// volume returns e as callers see it, with the creation time that the entry has by now.
func (e *entry) volume() Volume {
	e.facts.Lock()
	defer e.facts.Unlock()
	return Volume{
		Name: e.name, Driver: e.driver, Mountpoint: e.mountpoint, Scope: e.scope,
		CreatedAt: e.createdAt, Labels: e.labels, Options: e.options,
	}
}

// path returns where the data is, as last told.
func (e *entry) path() string {
	e.facts.Lock()
	defer e.facts.Unlock()
	return e.mountpoint
}

func (e *entry) knowsTime() bool {
	e.facts.Lock()
	defer e.facts.Unlock()
	return !e.createdAt.IsZero()
}

// learnFrom takes over what a listing told, which nobody else holds.
func (e *entry) learnFrom(listed *entry) {
	e.facts.Lock()
	defer e.facts.Unlock()
	e.scope = listed.scope
	e.mountpoint = cmp.Or(listed.mountpoint, e.mountpoint)
	if !listed.createdAt.IsZero() {
		e.createdAt = listed.createdAt
	}
}

// learn takes over what the driver told. What it did not tell stays as it was.
func (e *entry) learn(info Info, d Driver) {
	e.facts.Lock()
	defer e.facts.Unlock()
	e.scope = d.Traits().Scope
	if info.Mountpoint != "" {
		e.mountpoint = info.Mountpoint
	}
	if !info.CreatedAt.IsZero() {
		e.createdAt = info.CreatedAt
	}
}
