package containers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/internal/filters"
	"stated.dev/stated/volumes/mountpoint"
)

// cachedJSON is what a container's list entry was last encoded to. The status text changes with the clock, so it can be
// replaced.
type cachedJSON struct {
	entry  json.RawMessage
	at     int    // where the status text is
	status string // that text, with its quotes
}

// statusMark stands for the status text while an entry is encoded. It cannot be part of user data, which is escaped.
const statusMark = "\x00status\x00"

func (c *Container) dropCache() {
	c.mu.Lock()
	c.cached, c.inspected = cachedJSON{}, nil
	c.drops++
	c.mu.Unlock()
}

// summary returns the container's list entry, which is not to be changed.
func (c *Container) summary(r *Record, now time.Time) (json.RawMessage, error) {
	status := strconv.Quote(r.State.describe(now))
	c.mu.Lock()
	cached := c.cached
	c.mu.Unlock()
	if cached.entry != nil && cached.status == status {
		return cached.entry, nil
	}
	if cached.entry == nil {
		entry, err := encodeSummary(summarize(r))
		if err != nil {
			return nil, err
		}
		mark, _ := json.Marshal(statusMark)
		cached = cachedJSON{entry: entry, at: bytes.Index(entry, mark), status: string(mark)}
	}
	before, after := cached.entry[:cached.at], cached.entry[cached.at+len(cached.status):]
	cached.entry, cached.status = slices.Concat(before, []byte(status), after), status
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.record.Load() == r { // a change since would be hidden by what we have encoded
		c.cached = cached
	}
	return cached.entry, nil
}

func encodeSummary(s container.Summary) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(buf.Bytes()), nil
}

// summarize makes the list entry, with statusMark for the status text.
func summarize(r *Record) container.Summary {
	s := container.Summary{
		ID: r.ID, Names: []string{r.Name}, Image: r.Config.Image, ImageID: r.Image, Created: r.Created.Unix(),
		ImageManifestDescriptor: r.ImageManifest,
		Command:                 commandText(r.Path, r.Args), Labels: r.Config.Labels, State: r.State.status(), Status: statusMark,
		Ports: portSummary(r), Mounts: mountsOf(r),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: map[string]*network.EndpointSettings{}},
	}
	if s.Image == "" {
		s.Image = r.Image
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.HostConfig.NetworkMode = string(r.HostConfig.NetworkMode)
	s.HostConfig.Annotations = r.HostConfig.Annotations
	for name, ep := range r.NetworkSettings.Networks {
		s.NetworkSettings.Networks[name] = summarizeEndpoint(ep)
	}
	return s
}

// summarizeEndpoint keeps what a list entry shows of an endpoint: where it is, not what was asked for.
func summarizeEndpoint(ep *EndpointSettings) *network.EndpointSettings {
	sum := &network.EndpointSettings{
		GwPriority: ep.GwPriority, NetworkID: ep.NetworkID, EndpointID: ep.EndpointID, MacAddress: ep.MacAddress,
		Gateway: ep.Gateway, IPAddress: ep.IPAddress, IPPrefixLen: ep.IPPrefixLen,
		IPv6Gateway: ep.IPv6Gateway, GlobalIPv6Address: ep.GlobalIPv6Address, GlobalIPv6PrefixLen: ep.GlobalIPv6PrefixLen,
	}
	if ep.IPAMConfig != nil {
		sum.IPAMConfig = &network.EndpointIPAMConfig{IPv4Address: ep.IPAMConfig.IPv4Address, IPv6Address: ep.IPAMConfig.IPv6Address}
	}
	return sum
}

func commandText(command string, args []string) string {
	if len(args) == 0 {
		return command
	}
	words := make([]string, 0, len(args))
	for _, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return command + " " + strings.Join(words, " ")
}

// portSummary lists the published and exposed ports.
func portSummary(r *Record) []container.PortSummary {
	list := []container.PortSummary{}
	for _, port := range sortedPorts(r.NetworkSettings.Ports) {
		bindings := r.NetworkSettings.Ports[port]
		if len(bindings) == 0 {
			list = append(list, container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
		for _, b := range bindings {
			public, _, err := hostPorts(b.HostPort)
			if err != nil {
				continue // we wrote it, so it is well-formed
			}
			list = append(list, container.PortSummary{IP: b.HostIP, PrivatePort: port.Num(), PublicPort: public, Type: string(port.Proto())})
		}
	}
	return list
}

// mountsOf lists the mounts as inspect and list show them, by destination.
func mountsOf(r *Record) []container.MountPoint {
	list := []container.MountPoint{}
	for _, dest := range slices.Sorted(maps.Keys(r.MountPoints)) {
		m := r.MountPoints[dest]
		list = append(list, container.MountPoint{
			Type: m.Type, Name: m.Name, Source: m.Source, Destination: m.Destination, Driver: m.Driver, Mode: m.Mode, RW: m.RW, Propagation: m.Propagation,
		})
	}
	return list
}

// listFilter is a parsed set of list filters.
type listFilter struct {
	args          filters.Args
	before, since *Record
	exited        []int
	task          bool
	ancestors     map[string]bool
	all           bool
}

var listFilters = []string{"ancestor", "before", "exited", "expose", "health", "id", "isolation", "is-task", "label", "name", "network", "publish", "since", "status", "volume"}

// List returns the containers that req asks for, newest first, each as JSON.
func (s *Service) List(ctx context.Context, req api.ListRequest) ([]json.RawMessage, error) {
	f, err := s.parseListFilter(ctx, req)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	list := []json.RawMessage{}
	for _, c := range s.all() {
		if req.Limit > 0 && len(list) >= req.Limit {
			break
		}
		if !f.all && !c.brief.Load().Running {
			continue // before its record has to be decoded
		}
		r := c.rec()
		if c.isBroken() || !f.match(r) {
			continue
		}
		entry, err := c.summary(r, now)
		if err == nil && req.Size {
			entry, err = s.withSize(ctx, c, r, entry)
		}
		if err != nil {
			return nil, fmt.Errorf("list container %s: %w", c.id, err)
		}
		list = append(list, entry)
	}
	return list, nil
}

// withSize adds the sizes of the container's layers to an entry.
func (s *Service) withSize(ctx context.Context, c *Container, r *Record, entry json.RawMessage) (json.RawMessage, error) {
	rw, total, err := s.layers.RWSize(ctx, c.id)
	if err != nil {
		s.log.Warn("cannot find the size of a container", "container", c.id, "err", err)
		return entry, nil
	}
	entry = bytes.TrimSuffix(bytes.Clone(entry), []byte("}"))
	if rw != 0 { // clients of Docker get no zeros here
		entry = fmt.Appendf(entry, `,"SizeRw":%d`, rw)
	}
	if total != 0 {
		entry = fmt.Appendf(entry, `,"SizeRootFs":%d`, total)
	}
	return append(entry, '}'), nil
}

func (s *Service) parseListFilter(ctx context.Context, req api.ListRequest) (*listFilter, error) {
	if err := req.Filters.Validate(listFilters...); err != nil {
		return nil, err
	}
	f := &listFilter{args: req.Filters, all: req.All || req.Limit > 0}
	for _, v := range f.args["exited"] {
		code, err := strconv.Atoi(v)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'exited=%s'", v))
		}
		f.exited = append(f.exited, code)
		f.all = true
	}
	for _, v := range f.args["status"] {
		if !slices.Contains([]string{"created", "running", "paused", "restarting", "removing", "exited", "dead"}, v) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid value for state (%s): must be one of created, running, paused, restarting, removing, exited, dead", v))
		}
		f.all = true
	}
	for _, v := range f.args["health"] {
		if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'health=%s': %s", v, err))
		}
	}
	var err error
	if f.task, err = f.args.Bool("is-task", false); err != nil {
		return nil, err
	}
	for key, into := range map[string]**Record{"before": &f.before, "since": &f.since} {
		for _, ref := range f.args[key] {
			c, err := s.lookup(ref)
			if err != nil {
				return nil, err
			}
			*into = c.rec()
			f.all = true
		}
	}
	for _, key := range []string{"expose", "publish"} {
		for _, v := range f.args[key] {
			if _, err := parsePortFilter(v); err != nil {
				return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("error while looking up for %s %s: %s", key, v, err))
			}
		}
	}
	if f.args.Has("ancestor") {
		f.ancestors = map[string]bool{}
		for _, ref := range f.args["ancestor"] {
			if img, err := s.images.Image(ctx, ref); err == nil {
				f.ancestors[img.ID.String()] = true
			}
		}
	}
	return f, nil
}

func (f *listFilter) match(r *Record) bool {
	a := f.args
	switch {
	case !f.all && !r.State.Running,
		!a.MatchLabels("label", r.Config.Labels),
		!a.MatchAny("id", func(want string) bool { return strings.HasPrefix(r.ID, want) }),
		!a.MatchAny("name", func(want string) bool { return matchName(r.name(), want) }),
		!a.Match("status", string(r.State.status())),
		!a.MatchAny("health", func(want string) bool { return want == healthOf(r) }),
		f.ancestors != nil && !f.ancestors[r.Image],
		f.before != nil && !r.Created.Before(f.before.Created),
		f.since != nil && !r.Created.After(f.since.Created),
		len(f.exited) > 0 && (r.State.Running || r.State.FinishedAt.IsZero() || !slices.Contains(f.exited, r.State.ExitCode)),
		a.Has("is-task") && f.task != r.Managed,
		!a.MatchAny("volume", func(want string) bool { return hasVolume(r.MountPoints, want) }),
		!a.MatchAny("network", func(want string) bool { return hasNetwork(r, want) }),
		!a.MatchAny("expose", func(want string) bool { return hasPort(maps.Keys(r.Config.ExposedPorts), want) }),
		!a.MatchAny("publish", func(want string) bool { return hasPort(hostPortsOf(r), want) }):
		return false
	}
	return true
}

func healthOf(r *Record) string {
	if r.State.Health == nil {
		return string(container.NoHealthcheck)
	}
	return string(r.State.Health.Status)
}

// matchName matches a name by substring, or from its start or to its end with ^ and $.
func matchName(name, want string) bool {
	want = strings.TrimPrefix(want, "/")
	fromStart := strings.HasPrefix(want, "^")
	want = strings.TrimPrefix(strings.TrimPrefix(want, "^"), "/")
	toEnd := strings.HasSuffix(want, "$")
	want = strings.TrimSuffix(want, "$")
	switch {
	case fromStart && toEnd:
		return name == want
	case fromStart:
		return strings.HasPrefix(name, want)
	case toEnd:
		return strings.HasSuffix(name, want)
	}
	return strings.Contains(name, want)
}

func hasVolume(mounts map[string]*mountpoint.MountPoint, want string) bool {
	for dest, m := range mounts {
		if m.Name == want || path.Clean(dest) == path.Clean(want) || (m.Source != "" && path.Clean(m.Source) == path.Clean(want)) {
			return true
		}
	}
	return false
}

func hasNetwork(r *Record, want string) bool {
	for name, ep := range r.NetworkSettings.Networks {
		if name == want || strings.HasPrefix(ep.NetworkID, want) {
			return true
		}
	}
	return false
}

// portRange is PORT[-PORT][/PROTO] of a filter.
type portRange struct {
	first, last uint16
	proto       string
}

func parsePortFilter(text string) (portRange, error) {
	ports, proto, _ := strings.Cut(text, "/")
	from, to, ranged := strings.Cut(ports, "-")
	if !ranged {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return portRange{}, err
	}
	last, err := strconv.ParseUint(to, 10, 16)
	if err != nil {
		return portRange{}, err
	}
	return portRange{first: uint16(first), last: uint16(last), proto: cmp.Or(proto, "tcp")}, nil
}

func hasPort(ports func(func(network.Port) bool), want string) bool {
	w, err := parsePortFilter(want)
	if err != nil {
		return false // checked when the filter was read
	}
	for p := range ports {
		if p.Num() >= w.first && p.Num() <= w.last && string(p.Proto()) == w.proto {
			return true
		}
	}
	return false
}

// hostPortsOf yields the ports of the host that the container asks for, which the filter publish looks at.
func hostPortsOf(r *Record) func(func(network.Port) bool) {
	return func(yield func(network.Port) bool) {
		for port, bindings := range r.HostConfig.PortBindings {
			for _, b := range bindings {
				first, last, err := hostPorts(b.HostPort)
				if err != nil || first == 0 {
					continue // checked when the container was made; 0 is any port
				}
				for n := int(first); n <= int(last); n++ {
					if p, ok := network.PortFrom(uint16(n), port.Proto()); ok && !yield(p) {
						return
					}
				}
			}
		}
	}
}

// untilFilter reads the filter until: a time, or a duration back from now.
func untilFilter(f filters.Args) (time.Time, error) {
	values := f["until"]
	switch {
	case len(values) == 0:
		return time.Time{}, nil
	case len(values) > 1:
		return time.Time{}, errdefs.ErrInvalidArgument.WithMessage("more than one until filter specified")
	}
	if d, err := time.ParseDuration(values[0]); err == nil {
		return time.Now().Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, values[0]); err == nil {
		return t, nil
	}
	if secs, err := strconv.ParseFloat(values[0], 64); err == nil {
		return time.Unix(0, int64(secs*1e9)), nil
	}
	return time.Time{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse value as time or duration: %q", values[0]))
}

// Use is one container's use of an image.
type Use struct {
	ID, Name string
	Running  bool
	Mounted  bool // it mounts the image; otherwise it is made from it
}

// UsingImage lists the containers made from an image, and those that mount it.
func (s *Service) UsingImage(id string) []Use {
	var list []Use
	for _, c := range s.all() {
		b := c.brief.Load()
		mounts := slices.ContainsFunc(b.Images, func(i imageClaim) bool { return i.Image == id })
		if b.Image == id || mounts {
			list = append(list, Use{ID: b.ID, Name: b.Name, Running: b.Running, Mounted: b.Image != id})
		}
	}
	return list
}

// Counts returns how many containers are running, paused and neither.
func (s *Service) Counts() (running, paused, stopped int) {
	for _, c := range s.all() {
		switch b := c.brief.Load(); {
		case c.isBroken():
		case b.Paused:
			paused++
		case b.Running:
			running++
		default:
			stopped++
		}
	}
	return running, paused, stopped
}

// Usage lists every container with its sizes, as List does.
func (s *Service) Usage(ctx context.Context) ([]json.RawMessage, error) {
	return s.List(ctx, api.ListRequest{All: true, Size: true})
}
