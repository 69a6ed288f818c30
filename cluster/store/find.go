package store

import (
	"strconv"
	"strings"

	"stated.dev/stated/cluster/objects"
)

// selector is a way to find objects.
type selector uint8

const (
	noSelector selector = iota
	selectAll
	selectOr
	selectName
	selectNamePrefix
	selectIDPrefix
	selectCustom
	selectCustomPrefix
	selectRole
	selectMembership
	selectRuntime
	selectService
	selectNode
	selectSlot
	selectDesiredState
	selectTaskState
	selectNetwork
	selectSecret
	selectConfig
	selectAttachment
	selectGroup
	selectDriver
	selectType
)

// places say which index a selector reads. memdb scans by prefix when the index's name ends so.
var places = [...]string{
	selectName:         indexName,
	selectNamePrefix:   indexName + prefix,
	selectIDPrefix:     indexID + prefix,
	selectCustom:       indexCustom,
	selectCustomPrefix: indexCustom + prefix,
	selectRole:         indexRole,
	selectMembership:   indexMembership,
	selectRuntime:      indexRuntime,
	selectService:      indexService,
	selectNode:         indexNode,
	selectSlot:         indexSlot,
	selectDesiredState: indexDesiredState,
	selectTaskState:    indexTaskState,
	selectNetwork:      indexNetwork,
	selectSecret:       indexSecret,
	selectConfig:       indexConfig,
	selectAttachment:   indexAttachment,
	selectGroup:        indexGroup,
	selectDriver:       indexDriver,
	selectType:         indexType,
}

// By selects objects. The zero value selects none and is refused.
type By struct {
	selector selector
	key      string // as it is in the index, or begins there
	or       []By
}

// All selects every object of a table.
func All() By { return By{selector: selectAll} }

// Or selects what any of some selectors selects, each object once, in the order of the selectors.
func Or(by ...By) By { return By{selector: selectOr, or: by} }

// ByName selects by the whole name, in whatever case.
func ByName(name string) By { return exactly(selectName, strings.ToLower(name)) }

// ByNamePrefix selects by how the name begins, in whatever case.
func ByNamePrefix(p string) By { return By{selector: selectNamePrefix, key: strings.ToLower(p)} }

// ByIDPrefix selects by how the ID begins.
func ByIDPrefix(p string) By { return By{selector: selectIDPrefix, key: p} }

// ByCustom selects by an index among the annotations. Resources need their type, other objects have none.
func ByCustom(objType, index, value string) By {
	return exactly(selectCustom, customKey(objType, index, value))
}

// ByCustomPrefix selects by how an index among the annotations begins.
func ByCustomPrefix(objType, index, value string) By {
	return By{selector: selectCustomPrefix, key: customKey(objType, index, value)}
}

// ByRole selects nodes by the role that they have.
func ByRole(r objects.NodeRole) By { return exactly(selectRole, strconv.Itoa(int(r))) }

// ByMembership selects nodes.
func ByMembership(m objects.Membership) By { return exactly(selectMembership, strconv.Itoa(int(m))) }

// ByRuntime selects services and tasks by what runs them: see objects.TaskSpec.RuntimeName.
func ByRuntime(name string) By { return exactly(selectRuntime, name) }

// ByServiceID selects a service's tasks.
func ByServiceID(id string) By { return exactly(selectService, id) }

// ByNodeID selects a node's tasks.
func ByNodeID(id string) By { return exactly(selectNode, id) }

// BySlot selects the tasks of one slot of a service.
func BySlot(serviceID string, slot uint64) By {
	return exactly(selectSlot, slotKey(serviceID, slot))
}

// ByDesiredState selects tasks by the state that they should have.
func ByDesiredState(s objects.TaskState) By { return exactly(selectDesiredState, strconv.Itoa(int(s))) }

// ByTaskState selects tasks by the state that they have.
func ByTaskState(s objects.TaskState) By { return exactly(selectTaskState, strconv.Itoa(int(s))) }

// ByReferencedNetworkID selects services and tasks by the networks in their specs.
func ByReferencedNetworkID(id string) By { return exactly(selectNetwork, id) }

// ByReferencedSecretID selects services and tasks by the secrets in their specs.
func ByReferencedSecretID(id string) By { return exactly(selectSecret, id) }

// ByReferencedConfigID selects services and tasks by the configs in their specs.
func ByReferencedConfigID(id string) By { return exactly(selectConfig, id) }

// ByVolumeAttachment selects tasks by a volume that they use.
func ByVolumeAttachment(volumeID string) By { return exactly(selectAttachment, volumeID) }

// ByVolumeGroup selects volumes.
func ByVolumeGroup(group string) By { return exactly(selectGroup, group) }

// ByDriver selects volumes by their driver's name.
func ByDriver(name string) By { return exactly(selectDriver, name) }

// ByKind selects resources by their type.
func ByKind(resourceType string) By { return exactly(selectType, resourceType) }

func exactly(s selector, value string) By { return By{selector: s, key: value + terminator} }

// allowed says whether a table has all the selectors in b.
func (b By) allowed(d *definition) bool {
	switch b.selector {
	case selectAll:
		return true
	case selectOr:
		for _, o := range b.or {
			if !o.allowed(d) {
				return false
			}
		}
		return true
	}
	return d.selectors&(1<<b.selector) != 0
}
