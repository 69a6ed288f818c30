package runtime

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// userHZ is the unit of version 1's cpuacct.stat, which the kernel fixes at 100 a second for user space.
const userHZ = 100

// Stats reads one sample from the container's cgroup. A file that is not there, for want of its controller, leaves
// its figures zero.
func (t *task) Stats(ctx context.Context) (*Stats, error) {
	paths, err := t.cgroup(ctx)
	if err != nil {
		return nil, t.wrap("read statistics of", err)
	}
	st := readStats(paths)
	if st == nil {
		return nil, t.wrap("read statistics of", fmt.Errorf("cgroup is gone: %w", errdefs.ErrFailedPrecondition))
	}
	return st, nil
}

func readStats(p *cgroupPaths) *Stats {
	st := &Stats{Read: time.Now(), Version: p.version}
	probe := p.unified
	if p.version == 1 {
		probe = p.v1["memory"]
	}
	if probe != "" {
		if _, err := os.Stat(probe); err != nil {
			return nil
		}
	}
	if p.version == 2 {
		readV2(st, p.unified)
	} else {
		readV1(st, p.v1)
	}
	return st
}

func readV1(st *Stats, dirs map[string]string) {
	acct := dirs["cpuacct"]
	st.CPU.Total = number(acct, "cpuacct.usage")
	for f := range strings.FieldsSeq(text(acct, "cpuacct.usage_percpu")) {
		n, _ := strconv.ParseUint(f, 10, 64)
		st.CPU.PerCPU = append(st.CPU.PerCPU, n)
	}
	used := table(acct, "cpuacct.stat")
	st.CPU.User = used["user"] * uint64(time.Second/userHZ)
	st.CPU.System = used["system"] * uint64(time.Second/userHZ)
	sched := table(dirs["cpu"], "cpu.stat")
	st.CPU.Periods, st.CPU.ThrottledPeriods = sched["nr_periods"], sched["nr_throttled"]
	st.CPU.ThrottledTime = sched["throttled_time"]

	mem := dirs["memory"]
	st.Memory = MemoryStats{
		Usage:    number(mem, "memory.usage_in_bytes"),
		MaxUsage: number(mem, "memory.max_usage_in_bytes"),
		Limit:    number(mem, "memory.limit_in_bytes"),
		Failcnt:  number(mem, "memory.failcnt"),
		Stats:    table(mem, "memory.stat"),
	}
	st.Blkio = blkioV1(text(dirs["blkio"], "blkio.throttle.io_service_bytes_recursive"),
		text(dirs["blkio"], "blkio.throttle.io_serviced_recursive"))
	st.Pids = PidsStats{Current: number(dirs["pids"], "pids.current"), Limit: number(dirs["pids"], "pids.max")}
}

func readV2(st *Stats, dir string) {
	cpu := table(dir, "cpu.stat")
	st.CPU.Total = cpu["usage_usec"] * 1000
	st.CPU.User = cpu["user_usec"] * 1000
	st.CPU.System = cpu["system_usec"] * 1000
	st.CPU.Periods, st.CPU.ThrottledPeriods = cpu["nr_periods"], cpu["nr_throttled"]
	st.CPU.ThrottledTime = cpu["throttled_usec"] * 1000
	st.Memory = MemoryStats{
		Usage:    number(dir, "memory.current"),
		MaxUsage: number(dir, "memory.peak"),
		Limit:    number(dir, "memory.max"),
		Failcnt:  table(dir, "memory.events")["max"],
		Stats:    table(dir, "memory.stat"),
	}
	st.Blkio = blkioV2(text(dir, "io.stat"))
	st.Pids = PidsStats{Current: number(dir, "pids.current"), Limit: number(dir, "pids.max")}
}

// text reads a file of a cgroup, or nothing.
func text(dir, name string) string {
	if dir == "" {
		return ""
	}
	data, _ := os.ReadFile(filepath.Join(dir, name)) // missing without its controller
	return string(data)
}

// number reads a file that holds one number. "max" is the largest one.
func number(dir, name string) uint64 {
	s := strings.TrimSpace(text(dir, name))
	if s == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// table reads lines of a name and a number.
func table(dir, name string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(text(dir, name)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(v, 10, 64); ok && err == nil {
			m[k] = n
		}
	}
	return m
}

// blkioV1 joins version 1's two tables, whose lines are "8:0 Read 4096".
func blkioV1(bytes, ios string) []BlkioEntry {
	var entries []BlkioEntry
	at := map[string]int{}
	each := func(table string, add func(e *BlkioEntry, n uint64)) {
		for line := range strings.Lines(table) {
			f := strings.Fields(line)
			if len(f) != 3 || f[1] == "Total" {
				continue
			}
			n, err := strconv.ParseUint(f[2], 10, 64)
			major, minor, ok := device(f[0])
			if err != nil || !ok {
				continue
			}
			k := f[0] + " " + f[1]
			i, seen := at[k]
			if !seen {
				i = len(entries)
				at[k] = i
				entries = append(entries, BlkioEntry{Major: major, Minor: minor, Op: strings.ToLower(f[1])})
			}
			add(&entries[i], n)
		}
	}
	each(bytes, func(e *BlkioEntry, n uint64) { e.Bytes = n })
	each(ios, func(e *BlkioEntry, n uint64) { e.IOs = n })
	return entries
}

// blkioV2 reads lines like "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func blkioV2(stat string) []BlkioEntry {
	var entries []BlkioEntry
	for line := range strings.Lines(stat) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, ok := device(f[0])
		if !ok {
			continue
		}
		v := map[string]uint64{}
		for _, pair := range f[1:] {
			k, s, _ := strings.Cut(pair, "=")
			v[k], _ = strconv.ParseUint(s, 10, 64)
		}
		entries = append(entries,
			BlkioEntry{Major: major, Minor: minor, Op: "read", Bytes: v["rbytes"], IOs: v["rios"]},
			BlkioEntry{Major: major, Minor: minor, Op: "write", Bytes: v["wbytes"], IOs: v["wios"]})
	}
	return entries
}

func device(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, ok && err1 == nil && err2 == nil
}
