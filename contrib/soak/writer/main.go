// Command writer writes numbered lines to stdout at a steady rate, each with one system call, and measures how long its
// writes sleep for want of a reader. When it gets SIGTERM it writes what it measured to a file and ends.
//
// The Go runtime must not put the writing thread to sleep, as that would count: nothing is collected, and whoever starts
// this program sets GODEBUG to asyncpreemptoff=1.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Report is what the program measured. Times are in microseconds.
type Report struct {
	Lines        int64 // written
	SlowestWrite int64 // one write, with what it waited for a processor
	Blocked      int64 // the longest that one write slept, for want of a reader
	BlockedOver  int64 // writes that slept longer than 10 ms
}

func main() {
	lines := flag.Int("lines", 20000, "lines a second")
	out := flag.String("out", "", "file for the report")
	flag.Parse()
	debug.SetGCPercent(-1)
	stopping := make(chan os.Signal, 1)
	signal.Notify(stopping, syscall.SIGTERM)
	var stop atomic.Bool
	go func() {
		<-stopping
		stop.Store(true)
	}()
	var r Report
	err := write(&r, *lines, &stop)
	data, merr := json.Marshal(r)
	if err = errors.Join(err, merr); err == nil {
		err = os.WriteFile(*out, data, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// write writes rate lines a second, in bursts of a millisecond, until stop is set. It allocates nothing per line.
func write(r *Report, rate int, stop *atomic.Bool) error {
	runtime.LockOSThread()
	stat, err := unix.Open("/proc/thread-self/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open schedstat: %w", err)
	}
	defer unix.Close(stat)
	var line []byte
	begun := time.Now()
	for !stop.Load() {
		due := int64(time.Since(begun)) * int64(rate) / int64(time.Second)
		for r.Lines < due && !stop.Load() {
			line = append(line[:0], "line "...)
			line = strconv.AppendInt(line, r.Lines, 10)
			line = append(line, " of a container that writes while the daemon dies\n"...)
			if err := r.timed(stat, line); err != nil {
				return err
			}
			r.Lines++
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// timed writes one line and tells sleeping in the write, which is waiting for the reader, from running, during which the
// host of a virtual machine may take the processor away, and from waiting for a processor.
func (r *Report) timed(stat int, line []byte) error {
	var m moments
	written, errno := m.write(stat, line)
	if errno != 0 || written != len(line) {
		return fmt.Errorf("wrote %d bytes of %d: %w", written, len(line), errno)
	}
	took := time.Duration(m.end.Nano() - m.begin.Nano())
	slept := took
	if before, after := parse(m.before[:]), parse(m.after[:]); after.turns > before.turns {
		slept -= (after.ran - before.ran) + (after.waited - before.waited)
	} else if after.turns > 0 {
		slept = 0 // it ran all the time
	}
	r.SlowestWrite = max(r.SlowestWrite, took.Microseconds())
	r.Blocked = max(r.Blocked, slept.Microseconds())
	if slept > 10*time.Millisecond {
		r.BlockedOver++
	}
	return nil
}

// moments are the clock and the thread's schedstat before and after a write.
type moments struct {
	begin, end    unix.Timespec
	before, after [64]byte
}

// write writes one line. It makes system calls only and is not split, so that the runtime cannot take the thread's
// turn away meanwhile.
//
//go:nosplit
func (m *moments) write(stat int, line []byte) (int, unix.Errno) {
	unix.RawSyscall6(unix.SYS_PREAD64, uintptr(stat), uintptr(unsafe.Pointer(&m.before)), unsafe.Sizeof(m.before), 0, 0, 0)
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&m.begin)), 0)
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, 1, uintptr(unsafe.Pointer(&line[0])), uintptr(len(line)))
	unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&m.end)), 0)
	unix.RawSyscall6(unix.SYS_PREAD64, uintptr(stat), uintptr(unsafe.Pointer(&m.after)), unsafe.Sizeof(m.after), 0, 0, 0)
	return int(n), errno
}

// schedstat is what the kernel counts of a thread: how long it ran, until its last turn at a processor ended, how long
// it waited for one, and how many turns it had. All are zero where the kernel does not count.
type schedstat struct {
	ran, waited time.Duration
	turns       int64
}

func parse(text []byte) schedstat {
	var fields [3]int64
	field := 0
	for _, c := range text {
		switch {
		case c >= '0' && c <= '9':
			fields[field] = fields[field]*10 + int64(c-'0')
		case field == len(fields)-1:
			return schedstat{time.Duration(fields[0]), time.Duration(fields[1]), fields[2]}
		default:
			field++
		}
	}
	return schedstat{}
}
