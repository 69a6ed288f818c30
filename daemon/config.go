package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime/external"
)

// Default paths and values of the command line.
const (
	DefaultRoot       = "/var/lib/stated"
	DefaultExecRoot   = "/run/stated"
	DefaultSocket     = "unix:///run/stated/stated.sock"
	DefaultConfigFile = "/etc/stated/daemon.json"
	defaultStop       = 10 * time.Second
)

// Config is everything an operator can set. Its JSON names are those of daemon.json, which are Docker's where the
// meaning is the same.
type Config struct {
	Hosts           []string          `json:"hosts,omitempty"`
	Root            string            `json:"data-root,omitempty"`
	ExecRoot        string            `json:"exec-root,omitempty"`
	StorageDriver   string            `json:"storage-driver,omitempty"`
	StorageOpts     []string          `json:"storage-opts,omitempty"`
	Containerd      string            `json:"containerd,omitempty"`
	Pidfile         string            `json:"pidfile,omitempty"`
	Group           string            `json:"group,omitempty"`
	Labels          []string          `json:"labels,omitempty"`
	LogLevel        string            `json:"log-level,omitempty"`
	LogFormat       string            `json:"log-format,omitempty"`
	LogDriver       string            `json:"log-driver,omitempty"`
	LogOpts         map[string]string `json:"log-opts,omitempty"`
	LiveRestore     *bool             `json:"live-restore,omitempty"` // default true, unlike Docker
	Bridge          string            `json:"bridge,omitempty"`
	BIP             string            `json:"bip,omitempty"`
	AddressPools    []AddressPool     `json:"default-address-pools,omitempty"`
	DNS             []string          `json:"dns,omitempty"`
	DNSSearch       []string          `json:"dns-search,omitempty"`
	DNSOptions      []string          `json:"dns-opts,omitempty"`
	MTU             int               `json:"mtu,omitempty"`
	CgroupParent    string            `json:"cgroup-parent,omitempty"`
	ExecOpts        []string          `json:"exec-opts,omitempty"`
	Init            bool              `json:"init,omitempty"`
	InitPath        string            `json:"init-path,omitempty"`
	ShmSize         int64             `json:"default-shm-size,omitempty"` // bytes
	NoNewPrivileges bool              `json:"no-new-privileges,omitempty"`
	SeccompProfile  string            `json:"seccomp-profile,omitempty"`
	TLSVerify       bool              `json:"tlsverify,omitempty"`
	TLSCACert       string            `json:"tlscacert,omitempty"`
	TLSCert         string            `json:"tlscert,omitempty"`
	TLSKey          string            `json:"tlskey,omitempty"`
	InsecureTCP     bool              `json:"insecure-tcp,omitempty"`
	KVListen        string            `json:"kv-listen,omitempty"` // host:port; empty: the key tree is served on Hosts only
	KVOpts          map[string]string `json:"kv-opts,omitempty"`   // limits of the key tree, see keyLimits
	RegistryMirrors []string          `json:"registry-mirrors,omitempty"`
	Insecure        []string          `json:"insecure-registries,omitempty"`
	Debug           bool              `json:"debug,omitempty"`
	Experimental    bool              `json:"experimental,omitempty"`
	UsernsRemap     string            `json:"userns-remap,omitempty"`

	// ShimPath and RuncPath are set by the command, not by users: stated-shim is looked up beside the binary first.
	ShimPath string `json:"-"`
	RuncPath string `json:"-"`
	Version  string `json:"-"`

	remap remap // what UsernsRemap means
}

// AddressPool is a range that networks without a subnet are cut from.
type AddressPool struct {
	Base string `json:"base"`
	Size int    `json:"size"`
}

// LoadConfigFile reads a daemon.json into cfg. A file that is not there is no error unless required is set. Keys that
// stated does not know are an error: a misspelt key must not be lost silently.
func LoadConfigFile(path string, cfg *Config, required Required) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && !bool(required) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(cfg); err != nil {
		return fmt.Errorf("read the configuration file %s: %w", path, err)
	}
	return nil
}

// Required says that a file must be there.
type Required bool

// fillAndCheck sets defaults and reports everything that cannot work, each with its remedy.
func (c *Config) fillAndCheck() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	set := func(s *string, fallback string) {
		if *s == "" {
			*s = fallback
		}
	}
	set(&c.Root, DefaultRoot)
	set(&c.ExecRoot, DefaultExecRoot)
	set(&c.LogDriver, logs.JSONFile)
	if len(c.Hosts) == 0 {
		c.Hosts = []string{DefaultSocket}
	}
	for _, p := range []*string{&c.Root, &c.ExecRoot} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			bad("path %s: %w", *p, err)
			continue
		}
		*p = abs
	}
	if c.Root == c.ExecRoot {
		bad("--data-root and --exec-root are both %s: they must differ", c.Root)
	}
	if _, _, err := keyLimits(c.KVOpts); err != nil {
		errs = append(errs, err)
	}
	if err := logs.Validate(c.LogDriver, c.LogOpts); err != nil {
		bad("--log-driver: %w", err)
	}
	if c.Containerd != "" {
		if _, err := external.SocketPath(c.Containerd); err != nil {
			bad("--containerd: %w; want the path of its socket, like /run/containerd/containerd.sock", err)
		}
	}
	if c.Bridge != "" && c.BIP != "" && c.Bridge == "none" {
		bad("--bip has no meaning with --bridge none: drop one of them")
	}
	for _, opt := range c.ExecOpts {
		key, value, _ := strings.Cut(opt, "=")
		if key != "native.cgroupdriver" || !slices.Contains([]string{"cgroupfs", "systemd"}, value) {
			bad("--exec-opt %s: the only option is native.cgroupdriver=cgroupfs or native.cgroupdriver=systemd", opt)
		}
	}
	for _, l := range c.Labels {
		if k, _, ok := strings.Cut(l, "="); !ok || k == "" {
			bad("--label %q is not of the form key=value", l)
		}
	}
	if err := c.remapUsers(); err != nil {
		bad("--userns-remap: %w", err)
	}
	return errors.Join(errs...)
}

// cgroupDriver returns the driver chosen with --exec-opt, or "".
func (c *Config) cgroupDriver() string {
	for _, opt := range c.ExecOpts {
		if value, ok := strings.CutPrefix(opt, "native.cgroupdriver="); ok {
			return value
		}
	}
	return ""
}

// liveRestore says whether containers survive a stop of the daemon.
func (c *Config) liveRestore() bool { return c.LiveRestore == nil || *c.LiveRestore }
