package objects

import (
	"slices"
	"strconv"
	"strings"
)

// Kind says what an object is. The numbers are stored, so they never change.
type Kind uint8

// The kinds of objects.
const (
	KindNode      Kind = 1
	KindService   Kind = 2
	KindTask      Kind = 3
	KindNetwork   Kind = 4
	KindCluster   Kind = 5
	KindSecret    Kind = 6
	KindConfig    Kind = 7
	KindVolume    Kind = 8
	KindExtension Kind = 9
	KindResource  Kind = 10
)

// kinds is the list of all, by number.
var kinds = [...]struct {
	name string
	make func() Object
}{
	KindNode:      {"node", func() Object { return new(Node) }},
	KindService:   {"service", func() Object { return new(Service) }},
	KindTask:      {"task", func() Object { return new(Task) }},
	KindNetwork:   {"network", func() Object { return new(Network) }},
	KindCluster:   {"cluster", func() Object { return new(Cluster) }},
	KindSecret:    {"secret", func() Object { return new(Secret) }},
	KindConfig:    {"config", func() Object { return new(Config) }},
	KindVolume:    {"volume", func() Object { return new(Volume) }},
	KindExtension: {"extension", func() Object { return new(Extension) }},
	KindResource:  {"resource", func() Object { return new(Resource) }},
}

// KindCount is one more than the greatest kind.
const KindCount = len(kinds)

// Known says whether there is such a kind.
func (k Kind) Known() bool { return k > 0 && int(k) < len(kinds) }

// String is the kind's name, which is a table's, too.
func (k Kind) String() string {
	if !k.Known() {
		return "kind " + strconv.Itoa(int(k))
	}
	return kinds[k].name
}

// New returns an empty object, or nil for a kind that is not known.
func (k Kind) New() Object {
	if !k.Known() {
		return nil
	}
	return kinds[k].make()
}

// Builtin says whether a name is that of a kind, in whatever case. Extensions cannot have it.
func Builtin(name string) bool {
	return slices.ContainsFunc(kinds[1:], func(k struct {
		name string
		make func() Object
	}) bool {
		return strings.EqualFold(k.name, name)
	})
}
