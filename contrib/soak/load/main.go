// Command load runs inside a container: it looks up a name as fast as it is told to, answers on a TCP port and runs the
// command that its arguments name. When it gets SIGTERM it passes that on, waits for the command, writes what it
// measured to a file and ends.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// Report is what the program measured. Times are in microseconds.
type Report struct {
	Lookups      int64    // that were answered rightly
	Failed       []string // lookups that were not, the first few
	FailedCount  int64
	SlowestReply int64
}

func main() {
	lookups := flag.Int("lookups", 1000, "lookups a second")
	name := flag.String("name", "", "name to look up")
	want := flag.String("want", "", "its address")
	out := flag.String("out", "/out/report.json", "file for the report")
	flag.Parse()
	if err := run(*lookups, *name, *want, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(lookups int, name, want, out string, command []string) error {
	stopping := make(chan os.Signal, 1)
	signal.Notify(stopping, syscall.SIGTERM)
	if err := serve(); err != nil {
		return err
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var r Report
	var stop atomic.Bool
	var work sync.WaitGroup
	work.Go(func() { look(&r, lookups, name, want, &stop) })
	<-stopping
	stop.Store(true)
	work.Wait()
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		return fmt.Errorf("%s: %w", command[0], err)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return os.WriteFile(out, data, 0o644)
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
