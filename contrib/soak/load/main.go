// Command load runs inside a container: it writes numbered lines at a steady rate, looks up a name as fast as it is
// told to, and answers on a TCP port; without lookups it only writes. When it gets SIGTERM it writes what it measured
// to a file and ends.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Report is what the program measured. Times are in microseconds.
type Report struct {
	Lines        int64    // written
	SlowestWrite int64    // one write, with what it waited for a processor
	Blocked      int64    // the longest that one write slept, for want of a reader
	BlockedOver  int64    // writes that slept longer than 10 ms
	Lookups      int64    // that were answered rightly
	Failed       []string // lookups that were not, the first few
	FailedCount  int64
	SlowestReply int64
}

func main() {
	lines := flag.Int("lines", 20000, "lines a second")
	lookups := flag.Int("lookups", 1000, "lookups a second")
	name := flag.String("name", "", "name to look up")
	want := flag.String("want", "", "its address")
	out := flag.String("out", "/out/report.json", "file for the report")
	flag.Parse()
	runtime.GOMAXPROCS(8) // a write that blocks keeps its processor
	stopping := make(chan os.Signal, 1)
	signal.Notify(stopping, syscall.SIGTERM)
	if *lookups > 0 {
		if err := serve(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	var r Report
	var stop atomic.Bool
	var work sync.WaitGroup
	work.Go(func() { write(&r, *lines, &stop) })
	if *lookups > 0 {
		work.Go(func() { look(&r, *lookups, *name, *want, &stop) })
	}
	<-stopping
	stop.Store(true)
	work.Wait()
	data, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(*out, data, 0o644)
	}
	if err != nil {
		os.Exit(1)
	}
}

// each calls do rate times a second, in bursts of a millisecond, until stop is set.
func each(rate int, stop *atomic.Bool, do func(n int64)) {
	begun := time.Now()
	for n := int64(0); ; {
		due := int64(time.Since(begun)) * int64(rate) / int64(time.Second)
		for ; n < due; n++ {
			if stop.Load() {
				return
			}
			do(n)
		}
		if stop.Load() {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// write writes numbered lines, each with one system call, and tells sleeping in it, which is waiting for the reader,
// from waiting for a processor.
func write(r *Report, rate int, stop *atomic.Bool) {
	runtime.LockOSThread()
	stat, err := os.Open("/proc/thread-self/schedstat")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer stat.Close()
	each(rate, stop, func(n int64) {
		line := fmt.Appendf(nil, "line %d of a container that writes while the daemon dies\n", n)
		delayed := delay(stat)
		begun := time.Now()
		written, _, errno := unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&line[0])), uintptr(len(line)))
		took := time.Since(begun)
		delayed = delay(stat) - delayed
		if errno != 0 || int(written) != len(line) {
			fmt.Fprintln(os.Stderr, "write:", written, errno)
			os.Exit(1)
		}
		r.Lines++
		r.SlowestWrite = max(r.SlowestWrite, took.Microseconds())
		slept := (took - delayed).Microseconds()
		r.Blocked = max(r.Blocked, slept)
		if slept > 10_000 {
			r.BlockedOver++
		}
	})
}

// delay is how long this thread has waited for a processor, from its schedstat.
func delay(stat *os.File) time.Duration {
	var buf [64]byte
	n, _ := stat.ReadAt(buf[:], 0) // an empty answer counts as no delay
	var ran, waited int64
	_, _ = fmt.Sscan(string(buf[:n]), &ran, &waited)
	return time.Duration(waited)
}

// look asks the container's name server for name; every question is asked once.
func look(r *Report, rate int, name, want string, stop *atomic.Bool) {
	var mu sync.Mutex // guards r
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if r.FailedCount++; len(r.Failed) < 5 {
			r.Failed = append(r.Failed, err.Error())
		}
	}
	const askers = 4
	var work sync.WaitGroup
	for range askers {
		work.Go(func() {
			client := dns.Client{Timeout: 2 * time.Second}
			question := new(dns.Msg).SetQuestion(name+".", dns.TypeA)
			each(rate/askers, stop, func(int64) {
				question.Id = dns.Id()
				begun := time.Now()
				reply, _, err := client.Exchange(question, "127.0.0.11:53")
				took := time.Since(begun).Microseconds()
				if err == nil {
					if a, ok := first(reply); !ok || a != want {
						err = fmt.Errorf("answer %q, %s", a, dns.RcodeToString[reply.Rcode])
					}
				}
				if err != nil {
					fail(err)
					return
				}
				mu.Lock()
				r.Lookups++
				r.SlowestReply = max(r.SlowestReply, took)
				mu.Unlock()
			})
		})
	}
	work.Wait()
}

func first(m *dns.Msg) (string, bool) {
	if len(m.Answer) != 1 {
		return "", false
	}
	a, ok := m.Answer[0].(*dns.A)
	if !ok {
		return "", false
	}
	return a.A.String(), true
}

// serve gives back what it is sent.
func serve() error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c) // the peer sees whether it works
				_ = c.Close()        // likewise
			}()
		}
	}()
	return nil
}
