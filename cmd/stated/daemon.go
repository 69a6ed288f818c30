package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"stated.dev/stated/daemon"
)

// roomForGarbage is memory that nobody touches, so the kernel gives none for it. The collector counts it among what is in use,
// and so lets twice as much garbage lie before it runs. A heap of a few MiB would be collected every few hundred requests.
const roomForGarbage = 8 << 20

func daemonCommand() *cobra.Command {
	var cfg daemon.Config
	var configFile string
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			merged, err := mergeConfig(cmd, cfg, configFile)
			if err != nil {
				return err
			}
			log, err := newLogger(os.Stderr, merged)
			if err != nil {
				return err
			}
			slog.SetDefault(log)
			d, err := daemon.New(merged, log)
			if err != nil {
				return err
			}
			room := make([]byte, roomForGarbage)
			defer runtime.KeepAlive(room)
			return d.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	// "-H" may be given more than once here, so the daemon's own flag hides the clients'.
	f.StringArrayVarP(&cfg.Hosts, "host", "H", nil, "address to listen on: unix://PATH, tcp://HOST:PORT or fd:// (default "+daemon.DefaultSocket+")")
	f.StringVar(&configFile, "config-file", "", "configuration file (default "+daemon.DefaultConfigFile+", if it is there)")
	f.StringVar(&cfg.Root, "data-root", "", "directory of all lasting state, in Docker's layout (default "+daemon.DefaultRoot+")")
	f.StringVar(&cfg.ExecRoot, "exec-root", "", "directory of run-time state (default "+daemon.DefaultExecRoot+")")
	f.StringVarP(&cfg.StorageDriver, "storage-driver", "s", "", "graph driver (default: by what the data root has, then overlay2)")
	f.StringArrayVar(&cfg.StorageOpts, "storage-opt", nil, "graph driver option key=value")
	f.StringVar(&cfg.Containerd, "containerd", "", "address of an external containerd")
	f.StringVar(&cfg.Pidfile, "pidfile", "", "file to write the process id to")
	f.StringVar(&cfg.Group, "group", "", "group of the unix socket")
	f.StringArrayVar(&cfg.Labels, "label", nil, "label key=value of the daemon")
	f.StringVar(&cfg.LogLevel, "log-level", "", "debug, info, warn or error (default info)")
	f.StringVar(&cfg.LogFormat, "log-format", "", "text or json (default text)")
	f.StringVar(&cfg.LogDriver, "log-driver", "", "log driver of containers that name none (default json-file)")
	f.StringToStringVar(&cfg.LogOpts, "log-opt", nil, "log driver option key=value")
	live := f.Bool("live-restore", true, "keep containers running while the daemon is away")
	f.StringVarP(&cfg.Bridge, "bridge", "b", "", "name of the default bridge, or none (default docker0)")
	f.StringVar(&cfg.BIP, "bip", "", "address and prefix of the default bridge")
	f.StringArray("default-address-pool", nil, "base=CIDR,size=BITS that networks without a subnet are cut from")
	f.IntVar(&cfg.MTU, "mtu", 0, "MTU of the default bridge")
	f.StringVar(&cfg.CgroupParent, "cgroup-parent", "", "cgroup above those of all containers")
	f.StringArrayVar(&cfg.ExecOpts, "exec-opt", nil, "native.cgroupdriver=cgroupfs or native.cgroupdriver=systemd")
	f.BoolVar(&cfg.Init, "init", false, "give every container an init that forwards signals and reaps processes")
	f.StringVar(&cfg.InitPath, "init-path", "", "the init's binary (default: built in)")
	f.BoolVar(&cfg.TLSVerify, "tlsverify", false, "serve TCP with TLS, for clients with a certificate")
	f.StringVar(&cfg.TLSCACert, "tlscacert", "", "certificate authority of the clients")
	f.StringVar(&cfg.TLSCert, "tlscert", "", "certificate of the daemon")
	f.StringVar(&cfg.TLSKey, "tlskey", "", "key of the daemon")
	f.StringVar(&cfg.KVListen, "kv-listen", "", "serve the key tree (etcd v2 API) on this TCP address, as 127.0.0.1:2379; others than loopback need --tlsverify or --insecure-tcp")
	f.StringToStringVar(&cfg.KVOpts, "kv-opt", nil, "limit of the key tree, NAME=VALUE (docs/kv.md)")
	f.BoolVar(&cfg.InsecureTCP, "insecure-tcp", false, "allow TCP without client certificates: whoever reaches the port is root on this host")
	f.StringArrayVar(&cfg.RegistryMirrors, "registry-mirror", nil, "mirror of the default registry")
	f.StringArrayVar(&cfg.Insecure, "insecure-registry", nil, "registry to reach without verified TLS")
	f.StringVar(&cfg.UsernsRemap, "userns-remap", "", "user whose subordinate ids containers run with: default, USER, USER:GROUP, UID or UID:GID")
	f.BoolVarP(&cfg.Debug, "debug", "D", false, "log at debug level")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) {
		if cmd.Flags().Changed("live-restore") {
			cfg.LiveRestore = live
		}
	}
	return cmd
}

// mergeConfig lays the flags over the configuration file. A key set in both is an error, as users of dockerd expect.
func mergeConfig(cmd *cobra.Command, flags daemon.Config, file string) (daemon.Config, error) {
	cfg := flags
	path := file
	if path == "" {
		path = daemon.DefaultConfigFile
	}
	if err := daemon.LoadConfigFile(path, &cfg, daemon.Required(file != "")); err != nil {
		return cfg, err
	}
	var pools []string
	var err error
	if cmd.Flags().Lookup("default-address-pool") != nil { // not a flag of every command
		if pools, err = cmd.Flags().GetStringArray("default-address-pool"); err != nil {
			return cfg, err
		}
	}
	for _, text := range pools {
		pool, err := parsePool(text)
		if err != nil {
			return cfg, err
		}
		cfg.AddressPools = append(cfg.AddressPools, pool)
	}
	cfg.Version = version
	if cfg.ShimPath, err = besideOrPath("stated-shim"); err != nil {
		return cfg, err
	}
	if cfg.RuncPath, err = besideOrPath("runc"); err != nil {
		return cfg, err
	}
	return cfg, nil
}

// parsePool reads "base=172.30.0.0/16,size=24".
func parsePool(text string) (daemon.AddressPool, error) {
	var p daemon.AddressPool
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(part, "=")
		switch key {
		case "base":
			p.Base = value
		case "size":
			if _, err := fmt.Sscanf(value, "%d", &p.Size); err != nil {
				return p, fmt.Errorf("--default-address-pool %s: size is no number", text)
			}
		default:
			return p, fmt.Errorf("--default-address-pool %s: want base=CIDR,size=BITS", text)
		}
	}
	if p.Base == "" || p.Size == 0 {
		return p, fmt.Errorf("--default-address-pool %s: want base=CIDR,size=BITS", text)
	}
	return p, nil
}

// besideOrPath finds a program beside this one, else on PATH.
func besideOrPath(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		if resolved, err := filepath.EvalSymlinks(self); err == nil {
			self = resolved
		}
		beside := filepath.Join(filepath.Dir(self), name)
		if info, err := os.Stat(beside); err == nil && !info.IsDir() {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is neither beside stated nor on PATH: install it there", name)
	}
	return path, err
}

// newLogger returns the daemon's log.
func newLogger(w io.Writer, cfg daemon.Config) (*slog.Logger, error) {
	level := slog.LevelInfo
	if cfg.LogLevel != "" {
		if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
			return nil, fmt.Errorf("--log-level %s: want debug, info, warn or error", cfg.LogLevel)
		}
	}
	if cfg.Debug {
		level = slog.LevelDebug
	}
	opts := &slog.HandlerOptions{Level: level}
	switch cfg.LogFormat {
	case "", "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, fmt.Errorf("--log-format %s: want text or json", cfg.LogFormat)
}
