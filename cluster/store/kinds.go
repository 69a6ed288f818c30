package store

import (
	"strconv"
	"strings"

	"github.com/hashicorp/go-memdb"
	"github.com/moby/moby/api/types/swarm"

	"stated.dev/stated/cluster/objects"
)

// The names of indexes.
const (
	indexID           = "id"
	indexName         = "name"
	indexRuntime      = "runtime"
	indexService      = "serviceid"
	indexNode         = "nodeid"
	indexSlot         = "slot"
	indexDesiredState = "desiredstate"
	indexTaskState    = "taskstate"
	indexRole         = "role"
	indexMembership   = "membership"
	indexNetwork      = "network"
	indexSecret       = "secret"
	indexConfig       = "config"
	indexAttachment   = "volumeattachment"
	indexType         = "kind"
	indexCustom       = "custom"
	indexGroup        = "volumegroup"
	indexDriver       = "driver"

	prefix = "_prefix"
)

// terminator ends all keys, so that a scan for one value does not find longer ones.
const terminator = "\x00"

// definition is all that is particular of a kind.
type definition struct {
	names     naming
	indexes   map[string]memdb.Indexer // beside id, name and custom
	selectors uint32                   // a bit for each
}

// naming says what a kind's names have to be.
type naming uint8

const (
	uniqueNames naming = iota // and not empty
	anyNames
)

// definitions is the list of kinds.
var definitions = [objects.KindCount]definition{
	objects.KindNode: {
		names: anyNames,
		indexes: map[string]memdb.Indexer{
			indexRole:       one(func(n *objects.Node) string { return strconv.Itoa(int(n.Role)) }),
			indexMembership: one(func(n *objects.Node) string { return strconv.Itoa(int(n.Spec.Membership)) }),
		},
		selectors: common | bits(selectNamePrefix, selectRole, selectMembership),
	},
	objects.KindService: {
		indexes: map[string]memdb.Indexer{
			indexRuntime: some(func(s *objects.Service) string { return s.Spec.Task.RuntimeName() }),
			indexNetwork: many(func(s *objects.Service) []string {
				if n := s.Spec.Task.Networks; len(n) > 0 {
					return targets(n)
				}
				return targets(s.Spec.Networks)
			}),
			indexSecret: many(func(s *objects.Service) []string { return secrets(&s.Spec.Task) }),
			indexConfig: many(func(s *objects.Service) []string { return configs(&s.Spec.Task) }),
		},
		selectors: common | bits(selectNamePrefix, selectRuntime, selectNetwork, selectSecret, selectConfig),
	},
	objects.KindTask: {
		names: anyNames,
		indexes: map[string]memdb.Indexer{
			indexRuntime: some(func(t *objects.Task) string { return t.Spec.RuntimeName() }),
			indexService: some(func(t *objects.Task) string { return t.ServiceID }),
			indexNode:    some(func(t *objects.Task) string { return t.NodeID }),
			indexSlot: some(func(t *objects.Task) string {
				if t.ServiceID == "" && t.Slot == 0 {
					return ""
				}
				return slotKey(t.ServiceID, t.Slot)
			}),
			indexDesiredState: one(func(t *objects.Task) string { return strconv.Itoa(int(t.DesiredState)) }),
			indexTaskState:    one(func(t *objects.Task) string { return strconv.Itoa(int(t.Status.State)) }),
			indexNetwork:      many(func(t *objects.Task) []string { return targets(t.Spec.Networks) }),
			indexSecret:       many(func(t *objects.Task) []string { return secrets(&t.Spec) }),
			indexConfig:       many(func(t *objects.Task) []string { return configs(&t.Spec) }),
			indexAttachment: many(func(t *objects.Task) (ids []string) {
				for _, v := range t.Volumes {
					ids = append(ids, v.ID)
				}
				return ids
			}),
		},
		selectors: common | bits(selectNamePrefix, selectRuntime, selectDesiredState, selectTaskState, selectNode, selectService,
			selectSlot, selectNetwork, selectSecret, selectConfig, selectAttachment),
	},
	objects.KindNetwork: {selectors: common | bits(selectNamePrefix)},
	objects.KindCluster: {selectors: common | bits(selectNamePrefix)},
	objects.KindSecret:  {selectors: common | bits(selectNamePrefix)},
	objects.KindConfig:  {selectors: common | bits(selectNamePrefix)},
	objects.KindVolume: {
		indexes: map[string]memdb.Indexer{
			indexGroup: one(func(v *objects.Volume) string { return v.Spec.Group }),
			indexDriver: one(func(v *objects.Volume) string {
				if v.Spec.Driver == nil {
					return ""
				}
				return v.Spec.Driver.Name
			}),
		},
		selectors: common | bits(selectNamePrefix, selectGroup, selectDriver),
	},
	objects.KindExtension: {selectors: common},
	objects.KindResource: {
		indexes: map[string]memdb.Indexer{
			indexType: one(func(r *objects.Resource) string { return r.Type }),
		},
		selectors: common | bits(selectNamePrefix, selectType),
	},
}

// common are the selectors that all tables have.
var common = bits(selectName, selectIDPrefix, selectCustom, selectCustomPrefix)

func bits(list ...selector) (b uint32) {
	for _, s := range list {
		b |= 1 << s
	}
	return b
}

// empty is a database with all tables and nothing in them.
func empty() *memdb.MemDB {
	schema := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for k := objects.Kind(1); k.Known(); k++ {
		d := &definitions[k]
		table := &memdb.TableSchema{Name: k.String(), Indexes: map[string]*memdb.IndexSchema{
			indexID:     {Name: indexID, Unique: true, Indexer: one(func(o objects.Object) string { return o.Head().ID })},
			indexName:   {Name: indexName, Unique: d.names == uniqueNames, Indexer: one(func(o objects.Object) string { return strings.ToLower(o.Name()) })},
			indexCustom: {Name: indexCustom, AllowMissing: true, Indexer: many(customKeys)},
		}}
		for name, indexer := range d.indexes {
			table.Indexes[name] = &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: indexer}
		}
		schema.Tables[k.String()] = table
	}
	db, err := memdb.NewMemDB(schema)
	if err != nil {
		panic(err) // the list above is wrong
	}
	return db.Snapshot() // which looks after no watches of memdb's own
}

func targets(list []swarm.NetworkAttachmentConfig) (ids []string) {
	for i := range list {
		ids = append(ids, list[i].Target)
	}
	return ids
}

func secrets(s *objects.TaskSpec) (ids []string) {
	if s.ContainerSpec != nil {
		for _, r := range s.ContainerSpec.Secrets {
			if r != nil {
				ids = append(ids, r.SecretID)
			}
		}
	}
	return ids
}

func configs(s *objects.TaskSpec) (ids []string) {
	if s.ContainerSpec != nil {
		for _, r := range s.ContainerSpec.Configs {
			if r != nil {
				ids = append(ids, r.ConfigID)
			}
		}
	}
	return ids
}

func slotKey(serviceID string, slot uint64) string {
	return serviceID + terminator + strconv.FormatUint(slot, 10)
}

func customKey(objType, index, value string) string {
	if objType != "" {
		objType += "|"
	}
	return objType + index + "|" + value
}

func customKeys(o objects.Object) (keys []string) {
	objType := ""
	if r, ok := o.(*objects.Resource); ok {
		objType = r.Type
	}
	for _, i := range o.Notes().Indices {
		keys = append(keys, customKey(objType, i.Key, i.Value))
	}
	return keys
}

// indexer is memdb's view of an index with at most one key an object.
type indexer[T objects.Object] struct {
	key     func(T) string
	missing bool // an empty value has no key
}

func one[T objects.Object](key func(T) string) memdb.Indexer  { return indexer[T]{key: key} }
func some[T objects.Object](key func(T) string) memdb.Indexer { return indexer[T]{key, true} }

// FromObject is for memdb.
func (x indexer[T]) FromObject(raw any) (bool, []byte, error) {
	value := x.key(raw.(T))
	if value == "" && x.missing {
		return false, nil, nil
	}
	return true, finish(value), nil
}

// FromArgs is for memdb. By has whole keys.
func (indexer[T]) FromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

// PrefixFromArgs is for memdb.
func (indexer[T]) PrefixFromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

// lists is memdb's view of an index with any number of keys an object.
type lists[T objects.Object] struct{ keys func(T) []string }

func many[T objects.Object](keys func(T) []string) memdb.Indexer { return lists[T]{keys} }

// FromObject is for memdb.
func (x lists[T]) FromObject(raw any) (bool, [][]byte, error) {
	values := x.keys(raw.(T))
	if len(values) == 0 {
		return false, nil, nil
	}
	keys := make([][]byte, len(values))
	for i, v := range values {
		keys[i] = finish(v)
	}
	return true, keys, nil
}

// FromArgs is for memdb.
func (lists[T]) FromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

// PrefixFromArgs is for memdb.
func (lists[T]) PrefixFromArgs(args ...any) ([]byte, error) { return []byte(args[0].(string)), nil }

// finish leaves room for the ID that memdb appends to keys which are not unique.
func finish(value string) []byte {
	b := make([]byte, 0, len(value)+len(terminator)+objects.IDLen+len(terminator))
	return append(append(b, value...), terminator...)
}
