package store

import (
	"fmt"

	"stated.dev/stated/cluster/objects"
)

// Table is how objects of one type are read and changed in a transaction.
type Table[T objects.Object] struct{ kind objects.Kind }

// The tables.
var (
	Nodes      = Table[*objects.Node]{objects.KindNode}
	Services   = Table[*objects.Service]{objects.KindService}
	Tasks      = Table[*objects.Task]{objects.KindTask}
	Networks   = Table[*objects.Network]{objects.KindNetwork}
	Clusters   = Table[*objects.Cluster]{objects.KindCluster}
	Secrets    = Table[*objects.Secret]{objects.KindSecret}
	Configs    = Table[*objects.Config]{objects.KindConfig}
	Volumes    = Table[*objects.Volume]{objects.KindVolume}
	Extensions = Table[*objects.Extension]{objects.KindExtension}
	Resources  = Table[*objects.Resource]{objects.KindResource}
)

// DefaultClusterName is the name of the only object in Clusters.
const DefaultClusterName = "default"

// Reader is a transaction to read in: a *ReadTx or a *Tx.
type Reader interface{ reader() *ReadTx }

// Create adds a copy of o. Once the transaction has taken effect, o has the version and times that the store gave it.
func (t Table[T]) Create(tx *Tx, o T) error { return tx.create(o) }

// Update replaces the object that has o's ID by a copy of o. With a proposer, o must be of the version that is there. Once
// the transaction has taken effect, o has its new version and times.
func (t Table[T]) Update(tx *Tx, o T) error { return tx.update(o) }

// Delete removes an object.
func (t Table[T]) Delete(tx *Tx, id string) error { return tx.remove(t.kind, id) }

// Get returns an object, or nil when there is none. It is shared: see objects.Copy.
func (t Table[T]) Get(r Reader, id string) T {
	tx := r.reader()
	defer tx.store.observe(Lookup)()
	o, _ := tx.get(t.kind, id).(T)
	return o
}

// GetAll returns the objects with some IDs, in their order, without those that are not there.
func (t Table[T]) GetAll(r Reader, ids ...string) []T {
	list := make([]T, 0, len(ids))
	for _, id := range ids {
		if o, ok := r.reader().get(t.kind, id).(T); ok {
			list = append(list, o)
		}
	}
	return list
}

// Find returns the objects that a selector selects. They are shared.
func (t Table[T]) Find(r Reader, by By) ([]T, error) {
	if !by.allowed(&definitions[t.kind]) {
		return nil, ErrInvalidFindBy
	}
	tx := r.reader()
	defer tx.store.observe(Lookup)()
	if by.selector != selectOr {
		return find[T](tx, t.kind, by, nil, nil)
	}
	return find[T](tx, t.kind, by, nil, map[string]bool{})
}

// find appends what by selects and is not among seen, if that is there.
func find[T objects.Object](tx *ReadTx, k objects.Kind, by By, list []T, seen map[string]bool) (_ []T, err error) {
	if by.selector == selectOr {
		for _, o := range by.or {
			if list, err = find(tx, k, o, list, seen); err != nil {
				return nil, err
			}
		}
		return list, nil
	}
	place, key := indexID+prefix, ""
	if by.selector != selectAll {
		place, key = places[by.selector], by.key
	}
	if key == "" && cap(list) == 0 {
		list = make([]T, 0, tx.counts[k])
	}
	txn := tx.txn
	if tx.editor != nil && !tx.editor.dirty[k] {
		txn = tx.editor.base
	}
	i, err := txn.Get(k.String(), place, key)
	if err != nil {
		return nil, fmt.Errorf("find %ss: %w", k, err)
	}
	for raw := i.Next(); raw != nil; raw = i.Next() {
		o := raw.(T)
		if checked {
			tx.store.seals.check(o)
		}
		if seen != nil {
			if seen[o.Head().ID] {
				continue
			}
			seen[o.Head().ID] = true
		}
		list = append(list, o)
	}
	return list, nil
}
