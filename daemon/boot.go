package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/moby/sys/user"

	apicontainers "stated.dev/stated/api/router/containers"
	apidebug "stated.dev/stated/api/router/debug"
	apiimages "stated.dev/stated/api/router/images"
	apikeys "stated.dev/stated/api/router/keys"
	apinetworks "stated.dev/stated/api/router/networks"
	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/api/router/unbuilt"
	apivolumes "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/api/server"
	"stated.dev/stated/daemon/adopt"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/images"
	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/external"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/runtime/sysinfo"
	"stated.dev/stated/daemon/system"
	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/builtin"
	"stated.dev/stated/graphdriver/layer"
	"stated.dev/stated/internal/events"
	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/network"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
	"stated.dev/stated/volumes/plugin"
)

// stopGrace is how long requests under way may take when the daemon stops.
const stopGrace = 5 * time.Second

// Daemon is one running stated. Its fields are set by the phases, in order, and not changed afterwards.
type Daemon struct {
	cfg      Config
	log      *slog.Logger
	host     sysinfo.Info
	engineID string
	lock     *os.File // of the data root
	stack    *Stack
	server   *server.Server
	events   *events.Bus

	journal    *journal.Journal
	replayed   journal.Report // what the journal did at the start
	repaired   []string       // what was done to layers at the start
	adopted    bool           // the root was dockerd's until this start
	driver     graphdriver.Driver
	layers     *layer.Store
	images     *images.Service
	plugins    *plugin.Plugins
	volumes    *volumes.Store
	networks   *network.Controller
	keys       *keyTree
	runtime    runtime.Runtime
	notifier   *logs.Notifier
	containers *containers.Service
	system     *system.Service
}

// New checks the configuration. It opens nothing.
func New(cfg Config, log *slog.Logger) (*Daemon, error) {
	if err := cfg.fillAndCheck(); err != nil {
		return nil, err
	}
	switch {
	case cfg.remap.on():
		log.Info("containers run as remapped users", "ranges", cfg.remap.name, "root", cfg.Root)
	case cfg.UsernsRemap != "":
		log.Warn("User namespaces: root cannot be remapped with itself; user namespaces are OFF")
	}
	d := &Daemon{cfg: cfg, log: log, host: sysinfo.Detect(), events: events.New()}
	d.stack = NewStack(log, status,
		Phase{"graph driver", d.openGraph},
		Phase{"volumes", d.openVolumes},
		Phase{"network datastores", d.openNetwork},
		Phase{"cluster store", d.openCluster},
		Phase{"restore", d.restore},
		Phase{"serve", d.serve},
	)
	d.server = server.New(server.Options{Version: cfg.Version, Log: log, Experimental: cfg.Experimental, Ready: d.stack.Ready})
	d.server.Handle(apisystem.PhaseRoutes(d.stack))
	if cfg.Debug {
		d.server.Handle(apidebug.Routes())
	}
	return d, nil
}

// status tells the service manager what the daemon does.
func status(text string) {
	_, _ = systemd.SdNotify(false, "STATUS="+text) // without a service manager there is nobody to tell
}

// Run opens everything, serves until ctx ends, and closes everything.
func (d *Daemon) Run(ctx context.Context) (err error) {
	if err := d.prepareRoots(); err != nil {
		return err
	}
	defer d.lock.Close()
	listeners, passed, err := d.listen(ctx)
	if err != nil {
		return err
	}
	if err := d.writePidfile(); err != nil {
		return err
	}
	defer d.removePidfile()

	serveCtx, stopServing := context.WithCancelCause(context.WithoutCancel(ctx))
	var serving sync.WaitGroup
	serveOn := func(listeners []net.Listener) {
		for _, l := range listeners {
			serving.Go(func() {
				if err := d.server.Serve(serveCtx, l); err != nil {
					stopServing(err)
				}
			})
		}
	}
	serveOn(listeners)
	// In this order at the end: no more requests, then no more subsystems.
	defer func() {
		_, _ = systemd.SdNotify(false, systemd.SdNotifyStopping)
		grace, cancel := context.WithTimeout(context.Background(), stopGrace)
		defer cancel()
		err = errors.Join(err, d.server.Shutdown(grace))
		stopServing(nil)
		serving.Wait()
		err = errors.Join(err, d.stack.Close())
	}()

	if err := d.stack.Open(ctx); err != nil {
		for _, l := range passed {
			_ = l.Close() // the service manager keeps the socket
		}
		return err
	}
	serveOn(passed)
	d.log.Info("ready", "version", d.cfg.Version, "hosts", d.cfg.Hosts, "root", d.cfg.Root)
	_, _ = systemd.SdNotify(false, systemd.SdNotifyReady+"\nSTATUS=ready")
	stopWatchdog := d.feedWatchdog()
	defer stopWatchdog()

	select {
	case <-ctx.Done():
		d.log.Info("stopping")
		return nil
	case <-serveCtx.Done():
		return context.Cause(serveCtx)
	}
}

// feedWatchdog tells the service manager that the daemon lives, as often as it asks for, and returns what ends that.
func (d *Daemon) feedWatchdog() (stop func()) {
	interval, err := systemd.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return func() {}
	}
	done := make(chan struct{})
	var loop sync.WaitGroup
	loop.Go(func() {
		tick := time.NewTicker(interval / 2)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				_, _ = systemd.SdNotify(false, systemd.SdNotifyWatchdog)
			}
		}
	})
	return func() {
		close(done)
		loop.Wait()
	}
}

// statePath is a path below what is ours in the data root.
func (d *Daemon) statePath(elem ...string) string {
	return filepath.Join(append([]string{d.cfg.Root, stateDir}, elem...)...)
}

// prepareRoots makes the data and exec roots and takes the lock of the data root.
func (d *Daemon) prepareRoots() error {
	if d.cfg.remap.on() {
		if err := d.cfg.prepareRemappedRoot(); err != nil {
			return err
		}
	}
	for _, dir := range []struct {
		path string
		mode fs.FileMode
	}{{d.cfg.Root, 0o710}, {d.cfg.ExecRoot, 0o711}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("prepare the daemon's directories: %w", err)
		}
	}
	var err error
	// The kernel lists mounts by real paths, and who looks for what is mounted below the root compares them.
	if d.cfg.Root, err = filepath.EvalSymlinks(d.cfg.Root); err != nil {
		return fmt.Errorf("find the data root: %w", err)
	}
	d.adopted = adopt.IsDockers(d.cfg.Root)
	if d.lock, err = lockRoot(d.cfg.Root, d.log); err != nil {
		return err
	}
	return d.loadEngineID()
}

// listen opens the sockets. Those that a service manager passed are apart: it started the daemon because a client
// connected, and that client waits for its answer, so they are served once everything is open.
func (d *Daemon) listen(ctx context.Context) (opened, passed []net.Listener, err error) {
	for _, addr := range d.cfg.Hosts {
		tlsConfig, err := d.tlsConfig()
		if err != nil {
			return nil, nil, err
		}
		ls, err := server.Listen(ctx, server.ListenOptions{Addr: addr, Group: d.cfg.Group, TLS: tlsConfig, InsecureTCP: d.cfg.InsecureTCP})
		if err != nil {
			for _, l := range append(opened, passed...) {
				_ = l.Close() // the error above is the one to report
			}
			return nil, nil, err
		}
		if addr == "fd://" {
			passed = append(passed, ls...)
		} else {
			opened = append(opened, ls...)
		}
	}
	return opened, passed, nil
}

// tlsConfig reads the certificates for TCP; nil without --tlsverify.
func (d *Daemon) tlsConfig() (*tls.Config, error) {
	if !d.cfg.TLSVerify {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(d.cfg.TLSCert, d.cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("read --tlscert and --tlskey: %w", err)
	}
	pem, err := os.ReadFile(d.cfg.TLSCACert)
	if err != nil {
		return nil, fmt.Errorf("read --tlscacert: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read --tlscacert: %s holds no certificate", d.cfg.TLSCACert)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12}, nil
}

func (d *Daemon) writePidfile() error {
	if d.cfg.Pidfile == "" {
		return nil
	}
	return os.WriteFile(d.cfg.Pidfile, fmt.Appendf(nil, "%d", os.Getpid()), 0o644)
}

func (d *Daemon) removePidfile() {
	if d.cfg.Pidfile != "" {
		_ = os.Remove(d.cfg.Pidfile) // it names a process that ends now
	}
}

// openGraph opens the journal, the graph driver, the layers and the images.
func (d *Daemon) openGraph(ctx context.Context) (_ io.Closer, err error) {
	var opened closers
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Close())
		}
	}()
	var report journal.Report
	if d.journal, report, err = journal.Open(d.cfg.Root, d.statePath(), d.log); err != nil {
		return nil, err
	}
	opened.add(d.journal)
	d.replayed = report
	if len(report.Replayed) > 0 || len(report.Kept) > 0 {
		d.log.Warn("the last daemon did not end cleanly", "replayed", report.Replayed, "kept", report.Kept)
	}
	if d.driver, err = graphdriver.Open(ctx, d.cfg.graphOptions(), builtin.Table()); err != nil {
		return nil, err
	}
	opened.add(d.driver)
	imageDir := filepath.Join(d.cfg.Root, "image", d.driver.String())
	if d.layers, err = layer.Open(ctx, imageDir, d.driver); err != nil {
		return nil, err
	}
	opened.add(d.layers)
	switch {
	case report.Rebooted:
		d.repaired, err = d.layers.Repair(ctx)
	case d.adopted:
		d.repaired, err = d.layers.RepairDriver(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("repair the layers: %w", err)
	}
	for _, note := range d.repaired {
		d.log.Warn("layers repaired", "what", note)
	}
	d.images, err = images.Open(ctx, images.Options{
		Dir: imageDir, TempDir: filepath.Join(d.cfg.Root, "tmp"), LastDir: d.statePath("last"), Layers: imageLayers{d.layers},
		Containers: usedImages{d}, Events: d.events, Logger: d.log, Version: d.cfg.Version,
	})
	if err != nil {
		return nil, err
	}
	opened.add(d.images)
	return &opened, nil
}

func (d *Daemon) openVolumes(ctx context.Context) (io.Closer, error) {
	d.plugins = plugin.New(plugin.Options{})
	opts := volumeOptions(d.cfg)
	opts.Events, opts.References, opts.Finder, opts.Freeze = d.events, d.volumeUsers, d.plugins, d.freezeUsers
	var err error
	d.volumes, err = volumes.Open(ctx, opts)
	return d.volumes, err
}

// graphOptions are those of a data root's graph driver.
func (c *Config) graphOptions() graphdriver.Options {
	return graphdriver.Options{Root: c.Root, Name: c.StorageDriver, Opts: c.StorageOpts, IDMap: c.remap.ids}
}

// volumeOptions are those of a data root's volume store, without those who listen to it.
func volumeOptions(cfg Config) volumes.Options {
	dir, state := filepath.Join(cfg.Root, "volumes"), filepath.Join(cfg.Root, stateDir, "volumes")
	uid, gid := cfg.remap.ids.RootPair()
	return volumes.Options{Dir: dir, StateDir: state, Drivers: map[string]volumes.Driver{
		volumes.DefaultDriver: local.New(local.Options{Dir: dir, StateDir: state, UID: uid, GID: gid, Spares: spareVolumes}),
	}}
}

// spareVolumes is how many empty volumes lie ready: to make one is a sixth of the time that a client waits for it.
const spareVolumes = 16

func (d *Daemon) openNetwork(ctx context.Context) (io.Closer, error) {
	opts, err := d.networkOptions()
	if err != nil {
		return nil, err
	}
	d.networks, err = network.Open(ctx, opts)
	return d.networks, err
}

func (d *Daemon) openCluster(ctx context.Context) (io.Closer, error) {
	tlsConfig, err := d.tlsConfig()
	if err != nil {
		return nil, err
	}
	d.keys, err = openKeyTree(ctx, keyTreeOptions{
		Dir: d.statePath("cluster"), EngineID: d.engineID, Listen: d.cfg.KVListen, TLS: tlsConfig, InsecureTCP: d.cfg.InsecureTCP, Limits: d.cfg.KVOpts, Log: d.log,
	})
	if err != nil {
		return nil, err // not a Closer that holds a nil
	}
	d.server.Mount(kvhttp.OnDaemonSocket, d.keys.api)
	return d.keys, nil
}

// restore finds the containers again, and removes what nobody uses.
func (d *Daemon) restore(ctx context.Context) (_ io.Closer, err error) {
	var opened closers
	defer func() {
		if err != nil {
			err = errors.Join(err, opened.Close())
		}
	}()
	driver := d.cgroupDriver()
	if d.runtime, err = d.openRuntime(ctx, driver); err != nil {
		return nil, err
	}
	opened.add(d.runtime)
	if d.notifier, err = logs.NewNotifier(); err != nil {
		return nil, err
	}
	opened.add(d.notifier)
	shim, err := exec.LookPath(d.cfg.ShimPath)
	if err != nil {
		return nil, fmt.Errorf("find stated-shim: %w", err)
	}
	dir := filepath.Join(d.cfg.Root, "containers")
	uid, gid := d.cfg.remap.ids.RootPair()
	if err := user.MkdirAllAndChown(dir, 0o710, os.Getuid(), gid); err != nil {
		return nil, err
	}
	d.containers = containers.New(containers.Config{
		Dir: dir, IndexPath: d.statePath("index"), ExecRoot: d.cfg.ExecRoot, Root: d.cfg.Root, UID: uid, GID: gid, LogDriver: d.cfg.LogDriver, LogOpts: d.cfg.LogOpts,
		CgroupDriver: driver, StopTimeout: defaultStop, Settings: d.settingsHost(driver), Host: d.ociHost(driver, shim),
		LiveRestore: d.cfg.liveRestore(), Notifier: d.notifier, Sockets: d.socketPaths(),
	}, containerLayers{d.layers, d.cfg.Root}, containerImages{d.images}, containerVolumes{d.volumes}, containerNetworks{d.networks}, containerPins{pinDir(d.cfg.ExecRoot)}, d.runtime, d.journal, d.events, d.log)
	opened.add(d.containers)
	opened.add(closerFunc(func() error { // before the containers' end, which may wait for a plug-in that hangs
		d.plugins.Hurry()
		return nil
	}))
	if err := d.containers.Restore(ctx); err != nil {
		return nil, err
	}
	if err := d.volumes.Sweep(ctx); err != nil {
		d.log.Error("cannot unmount volumes that nobody uses", "err", err)
	}
	opened.add(d.sweepLayers())
	return &opened, nil
}

// openRuntime is what runs tasks: shims of our own, asked directly or through somebody else's containerd.
func (d *Daemon) openRuntime(ctx context.Context, cgroupDriver string) (runtime.Runtime, error) {
	opts := runtime.Options{ExecRoot: d.cfg.ExecRoot, ShimPath: d.cfg.ShimPath, RuncPath: d.cfg.RuncPath, CgroupDriver: cgroupDriver}
	if d.cfg.Containerd == "" {
		shims, err := runtime.New(opts)
		if err != nil {
			return nil, err // not a Runtime that holds nil Shims
		}
		return shims, nil
	}
	r, err := external.New(ctx, external.Options{Address: d.cfg.Containerd, Shims: opts})
	if err != nil {
		return nil, fmt.Errorf("--containerd: %w", err)
	}
	return r, nil
}

// sweepLayers deletes what no container and no image has, in the background: nobody waits for it. The closer ends it.
// A root that has no container at all, but layers of some, has lost its containers directory or does not see it: then
// nothing is deleted, and the doctor tells of it.
func (d *Daemon) sweepLayers() io.Closer {
	running, paused, stopped := d.containers.Counts()
	keep := d.containers.OwnsLayer
	if running+paused+stopped == 0 {
		keep = func(string) bool { return true }
	}
	ids := d.containers.IDs() // before there can be new ones
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		recorded := d.layers.Names()
		for _, id := range ids {
			if _, found := slices.BinarySearch(recorded, id); !found {
				d.containers.SetAside(id, errors.New(containerLayers{d.layers, d.cfg.Root}.missing(id)))
			}
		}
		for _, p := range d.layers.Problems() { // reads every record, which the start need not wait for
			if p.RW != "" {
				d.containers.SetAside(p.RW, p.Err)
			}
		}
		if err := d.layers.Sweep(ctx, keep); err != nil && ctx.Err() == nil {
			d.log.Error("cannot remove unused layers", "err", err)
		}
		if ctx.Err() == nil {
			d.dropUnreferenced(ctx)
		}
	})
	return closerFunc(func() error {
		cancel()
		work.Wait()
		return nil
	})
}

// dropUnreferenced deletes layers that belong to no image and no container: a crash between a layer and its image, or
// between an image and its layers, leaves them. While an image is broken none is deleted: it may be that image's.
func (d *Daemon) dropUnreferenced(ctx context.Context) {
	if len(d.images.Problems()) > 0 {
		return
	}
	for _, l := range d.layers.Unreferenced() {
		_, err := d.layers.Acquire(l.ChainID)
		if err == nil {
			err = d.layers.Release(ctx, l.ChainID)
		}
		if err != nil {
			d.log.Error("cannot remove an unused layer", "layer", l.ChainID, "err", err)
		}
	}
}

// cgroupDriver is the chosen driver, or the host's own.
func (d *Daemon) cgroupDriver() string {
	return cmp.Or(d.cfg.cgroupDriver(), d.host.DefaultCgroupDriver())
}

// socketPaths are the unix sockets on which the API is served.
func (d *Daemon) socketPaths() []string {
	var list []string
	for _, h := range d.cfg.Hosts {
		if path, ok := strings.CutPrefix(h, "unix://"); ok {
			list = append(list, path)
		}
	}
	return list
}

// settingsHost is what requests are checked against.
func (d *Daemon) settingsHost(cgroupDriver string) settings.Host {
	info := d.host
	info.IPv4ForwardingDisabled = false // the bridge driver turns it on before a container can use it
	return settings.Host{
		Info: info, SystemdCgroups: cgroupDriver == ocispec.CgroupDriverSystemd,
		Runtimes: []string{"runc", "io.containerd.runc.v2"}, DefaultRuntime: "runc",
		ShmSize: d.cfg.ShmSize, NoNewPrivileges: d.cfg.NoNewPrivileges, Remapped: d.cfg.remap.on(),
	}
}

// ociHost is what the machine and the configuration contribute to every container's runtime spec.
func (d *Daemon) ociHost(cgroupDriver, shim string) ocispec.Host {
	initPath := d.cfg.InitPath
	if initPath == "" {
		initPath = shim // the shim's binary is also the init of containers
	}
	return ocispec.Host{
		CgroupDriver: cgroupDriver, CgroupParent: d.cfg.CgroupParent, InitPath: initPath, InitByDefault: d.cfg.Init,
		SeccompSupported: d.host.Seccomp, SeccompProfile: d.cfg.SeccompProfile,
		RecursiveReadOnly: d.host.RecursiveReadOnly, PingGroupRange: d.host.PingGroupRange, UnprivilegedPortStart: d.host.UnprivilegedPortStart,
		DataRoot: d.cfg.Root, UIDMaps: d.cfg.remap.ids.UIDMaps, GIDMaps: d.cfg.remap.ids.GIDMaps,
	}
}

// serve opens the API.
func (d *Daemon) serve(context.Context) (io.Closer, error) {
	d.host.IPv4ForwardingDisabled = sysinfo.IPv4ForwardingDisabled() // the networks have been restored since it was read
	var err error
	if d.system, err = system.New(d.systemOptions()); err != nil {
		return nil, err
	}
	d.server.Handle(apicontainers.Routes(d.containers))
	d.server.Handle(apiimages.Routes(d.images))
	d.server.Handle(apivolumes.Routes(volumes.API{Store: d.volumes}))
	d.server.Handle(apivolumes.StreamRoutes(volumes.API{Store: d.volumes}))
	d.server.Handle(apivolumes.AdoptRoutes(d))
	d.server.Handle(apinetworks.Routes(networkBackend{d.networks, d.containers}))
	d.server.Handle(apisystem.Routes(d.system))
	d.server.Handle(apisystem.DoctorRoutes(d))
	d.server.Handle(apikeys.Routes(d.keys))
	d.server.Handle(unbuilt.Routes())
	return nil, nil
}

// closers closes what was opened, last first.
type closers []io.Closer

func (c *closers) add(x io.Closer) { *c = append(*c, x) }

// Close implements io.Closer.
func (c *closers) Close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i].Close())
	}
	return errors.Join(errs...)
}
