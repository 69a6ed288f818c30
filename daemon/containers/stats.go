package containers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/ocispec"
)

// statsInterval is the time between two samples of a stream.
const statsInterval = time.Second

// clockTicks is the kernel's USER_HZ, which is 100 on every Linux that containers run on.
const clockTicks = 100

// Stats emits samples of a container's resource use: one, or one a second until ctx ends or the container is gone.
// A container that does not run yields zeroes.
func (s *Service) Stats(ctx context.Context, ref string, req api.StatsRequest, emit func(json.RawMessage) error) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	var previous container.StatsResponse
	for first := true; ; first = false {
		sample, err := s.sample(ctx, c)
		if err != nil {
			return err
		}
		sample.PreRead, sample.PreCPUStats = previous.Read, previous.CPUStats
		previous = sample
		wanted := req.Stream || req.OneShot || !first || sample.Read.IsZero()
		if wanted {
			data, err := json.Marshal(sample)
			if err != nil {
				return err
			}
			if err := emit(data); err != nil {
				return err
			}
			if !req.Stream {
				return nil
			}
		}
		timer := time.NewTimer(statsInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-c.removed:
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// sample reads one sample; it is empty but for the names when the container does not run.
func (s *Service) sample(ctx context.Context, c *Container) (container.StatsResponse, error) {
	rec := c.rec()
	out := container.StatsResponse{ID: c.id, Name: rec.Name, OSType: "linux"}
	r := c.live()
	if r == nil {
		return out, nil
	}
	st, err := r.task().Stats(ctx)
	if err != nil {
		if c.live() != r {
			return out, nil // it ended just now
		}
		return out, fmt.Errorf("read the statistics of container %s: %w", c.id, err)
	}
	out.Read = st.Read
	out.CPUStats = container.CPUStats{
		CPUUsage:    container.CPUUsage{TotalUsage: st.CPU.Total, PercpuUsage: st.CPU.PerCPU, UsageInKernelmode: st.CPU.System, UsageInUsermode: st.CPU.User},
		SystemUsage: systemCPU(), OnlineCPUs: uint32(goruntime.NumCPU()),
		ThrottlingData: container.ThrottlingData{Periods: st.CPU.Periods, ThrottledPeriods: st.CPU.ThrottledPeriods, ThrottledTime: st.CPU.ThrottledTime},
	}
	out.MemoryStats = container.MemoryStats{Usage: st.Memory.Usage, MaxUsage: st.Memory.MaxUsage, Limit: st.Memory.Limit, Failcnt: st.Memory.Failcnt, Stats: st.Memory.Stats}
	out.PidsStats = container.PidsStats{Current: st.Pids.Current, Limit: st.Pids.Limit}
	out.BlkioStats = blkio(st)
	out.Networks = networkStats(rec.State.Pid)
	return out, nil
}

func blkio(st *runtime.Stats) container.BlkioStats {
	var b container.BlkioStats
	for _, e := range st.Blkio {
		b.IoServiceBytesRecursive = append(b.IoServiceBytesRecursive, container.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Bytes})
		if st.Version == 1 {
			b.IoServicedRecursive = append(b.IoServicedRecursive, container.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.IOs})
		}
	}
	return b
}

// systemCPU is the time all processors of the host have spent, in nanoseconds; 0 when it cannot be read.
func systemCPU() uint64 {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0
	}
	var ticks uint64
	for i, field := range strings.Fields(line) {
		if i == 0 || i > 8 { // "cpu", and guest time, which user time contains
			continue
		}
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks * uint64(time.Second/clockTicks)
}

// networkStats reads the counters of every interface but loopback in the network namespace of pid.
func networkStats(pid int) map[string]container.NetworkStats {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "net/dev"))
	if err != nil {
		return nil // it ended just now
	}
	defer f.Close()
	return parseNetDev(f)
}

// parseNetDev reads the table of /proc/net/dev.
func parseNetDev(r io.Reader) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, counters, ok := strings.Cut(lines.Text(), ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(counters)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 {
			v, _ := strconv.ParseUint(f[i], 10, 64) // the kernel writes numbers
			return v
		}
		out[name] = container.NetworkStats{
			RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3), TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11),
		}
	}
	return out
}

// updateTask applies limits to a live run.
func (s *Service) updateTask(ctx context.Context, r *run, res container.Resources) error {
	return r.task().Update(ctx, ocispec.UpdateResources(res))
}

// Top lists the container's processes as the host's ps shows them.
func (s *Service) Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error) {
	var resp container.TopResponse
	if psArgs == "" {
		psArgs = "-ef"
	}
	c, err := s.lookup(ref)
	if err != nil {
		return resp, err
	}
	r := c.live()
	if r == nil {
		return resp, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	if c.rec().State.Restarting {
		return resp, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", c.id))
	}
	pids, err := r.task().Pids(ctx)
	if err != nil {
		return resp, err
	}
	list := make([]string, len(pids))
	for i, p := range pids {
		list[i] = strconv.Itoa(p)
	}
	args := strings.Fields(psArgs)
	out, err := osexec.CommandContext(ctx, "ps", append(slices.Clone(args), "-q", strings.Join(list, ","))...).Output()
	if err != nil {
		// Some of ps's own arguments do not go with -q: list everything and choose.
		if out, err = osexec.CommandContext(ctx, "ps", args...).Output(); err != nil {
			return resp, fmt.Errorf("error running ps: %w: %s", err, stderrOf(err))
		}
	}
	if resp, err = parsePS(out, pids); err != nil {
		return resp, err
	}
	s.publish(c, events.ActionTop, nil)
	return resp, nil
}

func stderrOf(err error) string {
	if e, ok := err.(*osexec.ExitError); ok { //nolint:errorlint // exec returns it unwrapped
		return string(bytes.TrimSpace(e.Stderr))
	}
	return ""
}

// parsePS keeps the lines of ps's output whose PID column is among pids.
func parsePS(out []byte, pids []int) (container.TopResponse, error) {
	var resp container.TopResponse
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	resp.Titles = strings.Fields(lines[0])
	column := slices.Index(resp.Titles, "PID")
	if column < 0 {
		return resp, errdefs.ErrInvalidArgument.WithMessage("Couldn't find PID field in ps output")
	}
	resp.Processes = [][]string{}
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if len(fields) <= column {
			continue
		}
		pid, err := strconv.Atoi(fields[column])
		if err != nil {
			return resp, fmt.Errorf("unexpected pid %q in the output of ps", fields[column])
		}
		if !slices.Contains(pids, pid) {
			continue
		}
		// The last column is the command and may hold spaces.
		last := len(resp.Titles) - 1
		if len(fields) > last {
			fields = append(fields[:last:last], strings.Join(fields[last:], " "))
		}
		resp.Processes = append(resp.Processes, fields)
	}
	return resp, nil
}

// Changes lists what the container changed in its root file system.
func (s *Service) Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error) {
	c, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	return s.layers.RWChanges(ctx, c.id)
}

// Export streams the container's file system.
func (s *Service) Export(_ context.Context, ref string) (io.ReadCloser, error) {
	if _, err := s.lookup(ref); err != nil {
		return nil, err
	}
	return nil, errdefs.ErrNotImplemented.WithMessage("exporting a container is not built yet in stated")
}
