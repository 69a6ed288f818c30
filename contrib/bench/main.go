// Command bench measures stated beside a real dockerd, and its key tree beside a real etcd, operation by operation in
// alternating rounds, and prints a table for each: operation, medians of both, the limit measured on this machine, the
// ratio and the goal.
//
// It runs inside network and mount namespaces of its own; run.sh makes them. Both daemons share the machine with the
// benchmark, so only the ratios mean something elsewhere.
package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run of the program.
type bench struct {
	peers  [2]*peer // stated, dockerd; the second is nil when only the key tree is measured
	runc   string
	stated string // binary
	etcd   string // binary
	trees  string // binary that measures trees in memory
	image  string // tar of the busybox root
	dir    string
	tree   string // root of dockerd's chroot
	rounds int
	// treeSize is the size of the tree that is copied into volumes, in MiB.
	treeSize int64
	rows     []row
}

// row is one line of the table. Values are in unit; lower is better unless more is set.
type row struct {
	name    string
	unit    string
	values  [2]float64
	limit   float64 // 0: none was measured
	limitOf string
	goal    float64 // 0: only measured
	goalOf  goalOf
	more    bool   // higher is better, and so is a higher ratio
	against string // the peer, when it is not dockerd
}

// goalOf says what a goal is a multiple of.
type goalOf int

const (
	ofPeer  goalOf = iota // of the peer's value
	ofLimit               // of the limit
	ofUnit                // of nothing: it is a value
)

func main() {
	var b bench
	flag.StringVar(&b.stated, "stated", "", "stated binary")
	flag.StringVar(&b.tree, "dockerd-tree", "", "root of the tree that holds dockerd")
	flag.StringVar(&b.runc, "runc", "", "runc binary")
	flag.StringVar(&b.etcd, "etcd", "", "etcd binary")
	flag.StringVar(&b.trees, "trees", "", "binary of contrib/bench/v2store")
	flag.StringVar(&b.image, "image", "", "tar of the image to run")
	flag.IntVar(&b.rounds, "rounds", 7, "rounds of each measurement")
	flag.Int64Var(&b.treeSize, "tree", 1000, "size in MiB of the tree that is copied into volumes")
	only := flag.String("only", "", "comma-separated parts to run: api, run, images, volumes, copyup, start, live, flushes, keys, keys-memory, keys-http (default: all)")
	flag.Parse()
	if err := b.run(*only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(only string) (err error) {
	if b.dir, err = os.MkdirTemp("", "stated-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.cleanUp()) }()
	for _, d := range []string{"stated", "dockerd"} {
		if err := os.Mkdir(filepath.Join(b.dir, d), 0o755); err != nil {
			return err
		}
	}
	b.peers[0] = newStated(filepath.Join(b.dir, "stated"), b.stated)
	// A part's name up to a dash is the name of all parts that begin so.
	wanted := func(part string) bool {
		kind, _, _ := strings.Cut(part, "-")
		list := strings.Split(only, ",")
		return only == "" || slices.Contains(list, part) || slices.Contains(list, kind)
	}
	type part struct {
		name string
		do   func() error
	}
	parts := []part{{"keys-memory", b.treesInMemory}, {"keys-http", b.keysOverHTTP}, {"start", b.startEmpty}, {"images", b.images}, {"volumes", b.volumes}, {"copyup", b.copyUp}, {"api", b.api}, {"run", b.containers}, {"flushes", b.countFlushes}, {"live", b.live}, {"start", b.startFull}}
	// Every part but the starts and the keys needs daemons that run and have the image.
	if slices.ContainsFunc(parts, func(p part) bool { return wanted(p.name) && !strings.HasPrefix(p.name, "keys-") }) {
		if b.peers[1], err = newDockerd(filepath.Join(b.dir, "dockerd"), b.tree); err != nil {
			return err
		}
		if err := b.each(func(p *peer) error { return b.prepare(p) }); err != nil {
			return err
		}
	}
	for _, part := range parts {
		if !wanted(part.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "measuring:", part.name)
		if err := part.do(); err != nil {
			b.print()
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	b.print()
	return nil
}

func (b *bench) each(f func(*peer) error) error {
	for _, p := range b.peers {
		if err := f(p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// prepare starts a daemon and gives it the image.
func (b *bench) prepare(p *peer) error {
	if _, err := p.up(); err != nil {
		return err
	}
	return p.importImage(b.image, "busybox")
}

func (p *peer) importImage(archive, name string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.api.send("POST", "/images/create?fromSrc=-&repo="+name+"&changes=CMD%20%5B%22true%22%5D&changes=ENV%20PATH=/bin", "application/x-tar", f, nil)
}

// cleanUp ends the daemons with their containers.
func (b *bench) cleanUp() error {
	var errs []error
	for _, p := range b.peers {
		if p == nil || p.cmd == nil {
			continue
		}
		var list []struct{ ID string }
		if err := p.api.call("GET", "/containers/json?all=1", nil, &list); err == nil {
			for _, c := range list {
				errs = append(errs, p.api.remove(c.ID))
			}
		}
		errs = append(errs, p.down(syscall.SIGTERM))
	}
	// Both leave the host's network namespace mounted; this mount namespace ends with us.
	for _, run := range []string{filepath.Join(b.tree, "run", "docker"), filepath.Join(b.dir, "stated", "exec")} {
		_ = unix.Unmount(filepath.Join(run, "netns", "default"), unix.MNT_DETACH) // it is there when a container had it
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

func (b *bench) add(r row) { b.rows = append(b.rows, r) }

// print writes a table in Markdown for each peer.
func (b *bench) print() {
	for _, against := range []string{"", "etcd"} {
		rows := slices.DeleteFunc(slices.Clone(b.rows), func(r row) bool { return r.against != against })
		if len(rows) > 0 {
			printTable(cmp.Or(against, "dockerd"), rows)
		}
	}
}

func printTable(against string, rows []row) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| operation\t| stated\t| %s\t| limit\t| ratio\t| goal\t|\n", against)
	fmt.Fprintln(w, "|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, r := range rows {
		ratio := r.values[0] / r.values[1]
		limit := "-"
		if r.limit != 0 {
			limit = fmt.Sprintf("%s %s (%s)", number(r.limit), r.unit, r.limitOf)
		}
		fmt.Fprintf(w, "| %s\t| %s %s\t| %s %s\t| %s\t| %.2f\t| %s\t|\n", r.name, number(r.values[0]), r.unit, number(r.values[1]), r.unit, limit, ratio, r.verdict())
	}
	_ = w.Flush() // standard output
}

// verdict says what the goal is and whether it was reached.
func (r row) verdict() string {
	if r.goal == 0 {
		return "measured only"
	}
	value, of := r.values[0]/r.values[1], " ×"
	switch r.goalOf {
	case ofLimit:
		value, of = r.values[0]/r.limit, " × the limit"
	case ofUnit:
		value, of = r.values[0], strings.TrimRight(" "+r.unit, " ")
	}
	ok, sign := value <= r.goal, "≤"
	if r.more {
		ok, sign = value >= r.goal, "≥"
	}
	said := "missed"
	if ok {
		said = "reached"
	}
	return fmt.Sprintf("%s %g%s (%s)", sign, r.goal, of, said)
}

func number(v float64) string {
	switch {
	case v >= 1000:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func median(list []float64) float64 {
	slices.Sort(list)
	n := len(list)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return list[n/2]
	}
	return (list[n/2-1] + list[n/2]) / 2
}

// rounds of f on both peers in turn; each call yields one value, and the medians make a row.
func (b *bench) compare(r row, rounds int, f func(p *peer, round int) (float64, error)) error {
	var values [2][]float64
	for round := range rounds {
		for i, p := range b.peers {
			v, err := f(p, round)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", r.name, p.name, err)
			}
			values[i] = append(values[i], v)
		}
	}
	b.addMedians(r, values)
	return nil
}

func (b *bench) addMedians(r row, values [2][]float64) {
	for i := range values {
		r.values[i] = median(values[i])
	}
	b.add(r)
}

// each operation n times; the value is the median time of one, in milliseconds.
func timed(n int, f func(i int) error) (float64, error) {
	times := make([]float64, 0, n)
	for i := range n {
		started := time.Now()
		if err := f(i); err != nil {
			return 0, err
		}
		times = append(times, ms(time.Since(started)))
	}
	return median(times), nil
}

// rate runs f from c goroutines, n times in all, and returns operations a second.
func rate(c, n int, f func(i int) error) (float64, error) {
	work := make(chan int)
	errs := make(chan error, c)
	started := time.Now()
	for range c {
		go func() {
			var err error
			for i := range work {
				if err == nil {
					err = f(i)
				}
			}
			errs <- err
		}()
	}
	for i := range n {
		work <- i
	}
	close(work)
	var all []error
	for range c {
		all = append(all, <-errs)
	}
	return float64(n) / time.Since(started).Seconds(), errors.Join(all...)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
