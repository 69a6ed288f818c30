package objects

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/volume"
)

// Object is what a store keeps: one of this package's types, behind a pointer.
type Object interface {
	Kind() Kind
	Head() *Header
	// Name is what the object is found by. It may be empty where that is allowed.
	Name() string
	// Notes are the annotations that the user gave.
	Notes() *Annotations
}

// Meta is the version and the times of an object.
type Meta = swarm.Meta

// Header is what all objects begin with.
type Header struct {
	ID   string
	Meta Meta // the store's
}

// Head returns the header, to be read or changed.
func (h *Header) Head() *Header { return h }

// Annotations are what a user calls an object.
type Annotations struct {
	Name    string            `json:",omitempty"`
	Labels  map[string]string `json:",omitempty"`
	Indices []Index           `json:",omitempty"`
}

// Index is a key and a value that an object can be found by.
type Index struct{ Key, Value string }

// NodeRole is what a node does in the cluster. The numbers are stored.
type NodeRole int

// The roles of nodes.
const (
	RoleWorker  NodeRole = 0
	RoleManager NodeRole = 1
)

// Membership says whether a node was let into the cluster. The numbers are stored.
type Membership int

// The memberships of nodes.
const (
	MembershipPending  Membership = 0
	MembershipAccepted Membership = 1
)

// Node is a host in the cluster.
type Node struct {
	Header
	Spec          NodeSpec
	Description   *swarm.NodeDescription `json:",omitempty"` // nil until the node has told
	Status        swarm.NodeStatus
	ManagerStatus *swarm.ManagerStatus `json:",omitempty"` // nil for workers
	Role          NodeRole             `json:",omitempty"` // that it has, not that it should have
	Attachments   []NetworkAttachment  `json:",omitempty"`
}

// NodeSpec is what the user wants of a node.
type NodeSpec struct {
	Annotations
	DesiredRole  NodeRole               `json:",omitempty"`
	Membership   Membership             `json:",omitempty"`
	Availability swarm.NodeAvailability `json:",omitempty"`
}

func (*Node) Kind() Kind            { return KindNode }
func (n *Node) Notes() *Annotations { return &n.Spec.Annotations }

// Name is the host's name.
func (n *Node) Name() string {
	if n.Description == nil {
		return ""
	}
	return n.Description.Hostname
}

// NetworkAttachment is the place that a task or node has on a network.
type NetworkAttachment struct {
	NetworkID  string
	Addresses  []netip.Prefix    `json:",omitempty"`
	Aliases    []string          `json:",omitempty"`
	DriverOpts map[string]string `json:",omitempty"`
}

// TaskSpec is what tasks are made from.
type TaskSpec struct {
	swarm.TaskSpec
	Generic *GenericSpec `json:",omitempty"`
}

// GenericSpec is for tasks that are neither containers nor attachments.
type GenericSpec struct {
	Kind    string
	Payload []byte `json:",omitempty"`
}

// RuntimeName is by what a task is run, and empty for a spec that does not say.
func (s *TaskSpec) RuntimeName() string {
	switch {
	case s.NetworkAttachmentSpec != nil:
		return "network-attachment"
	case s.ContainerSpec != nil:
		return "container"
	case s.Generic != nil:
		return strings.ToLower(s.Generic.Kind)
	case s.PluginSpec != nil:
		return "plugin"
	}
	return ""
}

// Service is a number of tasks that are kept running.
type Service struct {
	Header
	Spec                ServiceSpec
	SpecVersion         swarm.Version
	PreviousSpec        *ServiceSpec   `json:",omitempty"`
	PreviousSpecVersion *swarm.Version `json:",omitempty"`
	Endpoint            *swarm.Endpoint
	UpdateStatus        *swarm.UpdateStatus `json:",omitempty"`
	JobStatus           *swarm.JobStatus    `json:",omitempty"`
	PendingDelete       bool                `json:",omitempty"`
}

// ServiceSpec is what the user wants of a service.
type ServiceSpec struct {
	Annotations
	Task     TaskSpec
	Mode     swarm.ServiceMode
	Update   *swarm.UpdateConfig             `json:",omitempty"`
	Rollback *swarm.UpdateConfig             `json:",omitempty"`
	Networks []swarm.NetworkAttachmentConfig `json:",omitempty"` // deprecated for Task.Networks
	Endpoint *swarm.EndpointSpec             `json:",omitempty"`
}

func (*Service) Kind() Kind            { return KindService }
func (s *Service) Name() string        { return s.Spec.Name }
func (s *Service) Notes() *Annotations { return &s.Spec.Annotations }

// TaskState is how far a task has come: it only grows. The numbers are stored.
type TaskState int

// The states of tasks.
const (
	TaskNew       TaskState = 0
	TaskPending   TaskState = 64
	TaskAssigned  TaskState = 192
	TaskAccepted  TaskState = 256
	TaskPreparing TaskState = 320
	TaskReady     TaskState = 384
	TaskStarting  TaskState = 448
	TaskRunning   TaskState = 512
	TaskComplete  TaskState = 576
	TaskShutdown  TaskState = 640
	TaskFailed    TaskState = 704
	TaskRejected  TaskState = 768
	TaskRemove    TaskState = 800
	TaskOrphaned  TaskState = 832
)

// Task is one run of a service's task on one node.
type Task struct {
	Header
	Annotations        Annotations
	ServiceAnnotations Annotations
	Spec               TaskSpec
	SpecVersion        *swarm.Version `json:",omitempty"`
	ServiceID          string         `json:",omitempty"`
	Slot               uint64         `json:",omitempty"` // 0 for global services
	NodeID             string         `json:",omitempty"`
	Status             TaskStatus
	DesiredState       TaskState                `json:",omitempty"`
	Networks           []NetworkAttachment      `json:",omitempty"`
	Endpoint           *swarm.Endpoint          `json:",omitempty"`
	LogDriver          *swarm.Driver            `json:",omitempty"`
	GenericResources   []swarm.GenericResource  `json:",omitempty"`
	JobIteration       *swarm.Version           `json:",omitempty"`
	Volumes            []swarm.VolumeAttachment `json:",omitempty"`
}

// TaskStatus is what an agent says of a task.
type TaskStatus struct {
	Timestamp time.Time              `json:",omitzero"`
	State     TaskState              `json:",omitempty"`
	Message   string                 `json:",omitempty"`
	Err       string                 `json:",omitempty"`
	AppliedBy string                 `json:",omitempty"`
	AppliedAt time.Time              `json:",omitzero"`
	Container *swarm.ContainerStatus `json:",omitempty"`
	Ports     []swarm.PortConfig     `json:",omitempty"`
}

func (*Task) Kind() Kind            { return KindTask }
func (t *Task) Notes() *Annotations { return &t.Annotations }

// Name is the name that the task was given, or one made of the service's name, the slot or the node, and the ID.
func (t *Task) Name() string {
	switch {
	case t.Annotations.Name != "":
		return t.Annotations.Name
	case t.Slot != 0:
		return t.ServiceAnnotations.Name + "." + strconv.FormatUint(t.Slot, 10) + "." + t.ID
	}
	return t.ServiceAnnotations.Name + "." + t.NodeID + "." + t.ID
}

// Network is a network of the cluster.
type Network struct {
	Header
	Spec          NetworkSpec
	DriverState   *swarm.Driver      `json:",omitempty"`
	IPAM          *swarm.IPAMOptions `json:",omitempty"`
	PendingDelete bool               `json:",omitempty"`
}

// NetworkSpec is what the user wants of a network.
type NetworkSpec struct {
	Annotations
	Driver     *swarm.Driver            `json:",omitempty"`
	IPv6       bool                     `json:",omitempty"`
	Internal   bool                     `json:",omitempty"`
	Attachable bool                     `json:",omitempty"`
	Ingress    bool                     `json:",omitempty"`
	IPAM       *swarm.IPAMOptions       `json:",omitempty"`
	ConfigFrom *network.ConfigReference `json:",omitempty"`
	Scope      string                   `json:",omitempty"`
}

func (*Network) Kind() Kind            { return KindNetwork }
func (n *Network) Name() string        { return n.Spec.Name }
func (n *Network) Notes() *Annotations { return &n.Spec.Annotations }

// Cluster is the cluster as a whole.
type Cluster struct {
	Header
	Spec            ClusterSpec
	RootCA          RootCA
	JoinTokens      swarm.JoinTokens
	UnlockKeys      []Key          `json:",omitempty"`
	NetworkKeys     []Key          `json:",omitempty"`
	KeyClock        uint64         `json:",omitempty"` // orders NetworkKeys on all nodes
	DefaultAddrPool []netip.Prefix `json:",omitempty"`
	SubnetSize      uint32         `json:",omitempty"`
	DataPathPort    uint32         `json:",omitempty"`
}

// ClusterSpec is what the user wants of the cluster.
type ClusterSpec struct {
	Annotations
	Orchestration swarm.OrchestrationConfig
	Raft          swarm.RaftConfig
	Dispatcher    swarm.DispatcherConfig
	CA            swarm.CAConfig
	TaskDefaults  swarm.TaskDefaults
	Encryption    swarm.EncryptionConfig
}

// RootCA is who the cluster's certificates are signed by.
type RootCA struct {
	Certificate []byte         `json:",omitempty"` // PEM
	Key         []byte         `json:",omitempty"` // PEM; none with an external authority
	Digest      string         `json:",omitempty"`
	TLS         *swarm.TLSInfo `json:",omitempty"`
	Rotating    bool           `json:",omitempty"`
}

// Key is one that the cluster's nodes share.
type Key struct {
	Subsystem string
	Algorithm string `json:",omitempty"`
	Secret    []byte
	Clock     uint64 `json:",omitempty"`
}

func (*Cluster) Kind() Kind            { return KindCluster }
func (c *Cluster) Name() string        { return c.Spec.Name }
func (c *Cluster) Notes() *Annotations { return &c.Spec.Annotations }

// Secret is data that only the tasks which need it see.
type Secret struct {
	Header
	Spec     SecretSpec
	Internal bool `json:",omitempty"` // not for users
}

// SecretSpec is what the user wants of a secret.
type SecretSpec struct {
	Annotations
	Data       []byte        `json:",omitempty"`
	Driver     *swarm.Driver `json:",omitempty"`
	Templating *swarm.Driver `json:",omitempty"`
}

func (*Secret) Kind() Kind            { return KindSecret }
func (s *Secret) Name() string        { return s.Spec.Name }
func (s *Secret) Notes() *Annotations { return &s.Spec.Annotations }

// Config is a file for tasks.
type Config struct {
	Header
	Spec ConfigSpec
}

// ConfigSpec is what the user wants of a config.
type ConfigSpec struct {
	Annotations
	Data       []byte        `json:",omitempty"`
	Templating *swarm.Driver `json:",omitempty"`
}

func (*Config) Kind() Kind            { return KindConfig }
func (c *Config) Name() string        { return c.Spec.Name }
func (c *Config) Notes() *Annotations { return &c.Spec.Annotations }

// Volume is a volume of the cluster, which a driver publishes on nodes.
type Volume struct {
	Header
	Spec          VolumeSpec
	PublishStatus []*volume.PublishStatus `json:",omitempty"`
	Info          *volume.Info            `json:",omitempty"`
	PendingDelete bool                    `json:",omitempty"`
}

// VolumeSpec is what the user wants of a volume.
type VolumeSpec struct {
	Annotations
	Driver *swarm.Driver `json:",omitempty"`
	volume.ClusterVolumeSpec
}

func (*Volume) Kind() Kind            { return KindVolume }
func (v *Volume) Name() string        { return v.Spec.Name }
func (v *Volume) Notes() *Annotations { return &v.Spec.Annotations }

// Extension names a kind of resources. It never changes.
type Extension struct {
	Header
	Annotations Annotations
	Description string `json:",omitempty"`
}

func (*Extension) Kind() Kind            { return KindExtension }
func (e *Extension) Name() string        { return e.Annotations.Name }
func (e *Extension) Notes() *Annotations { return &e.Annotations }

// Resource is an object whose meaning the store does not know.
type Resource struct {
	Header
	Annotations Annotations
	Type        string // the name of an extension
	Payload     []byte `json:",omitempty"`
}

func (*Resource) Kind() Kind            { return KindResource }
func (r *Resource) Name() string        { return r.Annotations.Name }
func (r *Resource) Notes() *Annotations { return &r.Annotations }
