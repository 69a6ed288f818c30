package pid1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// start starts the command and returns its pid. With a terminal on stdin it becomes the foreground.
func start(args []string) (int, error) {
	if _, err := unix.IoctlGetInt(unix.Stdin, unix.TIOCGPGRP); err == nil {
		return startForeground(args)
	}
	return startAny(args, &syscall.SysProcAttr{Setpgid: true})
}

// startForeground starts the command as the terminal's foreground group. Between fork and exec the new process has to
// call for the foreground while it is still in the background, which stops it unless it ignores SIGTTOU, and what is
// ignored stays so in the command. So the new process is first this program again, which takes that back.
func startForeground(args []string) (int, error) {
	signal.Ignore(unix.SIGTTOU, unix.SIGTTIN)
	self := "/proc/self/exe"
	argv := append([]string{os.Args[0], stageForeground}, args...)
	pid, err := syscall.ForkExec(self, argv, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: unix.Stdin},
	})
	if err != nil {
		// No /proc, or a terminal that is not ours after all: better in the background than not at all.
		return startAny(args, &syscall.SysProcAttr{Setpgid: true})
	}
	return pid, nil
}

// finishForeground is the second stage: it makes the terminal's signals stop a background process again and becomes the
// command. It returns only when that fails.
func finishForeground(args []string, messages io.Writer) int {
	for _, s := range []unix.Signal{unix.SIGTTOU, unix.SIGTTIN} {
		if err := defaultDisposition(s); err != nil {
			fmt.Fprintf(messages, "docker-init: resetting %v: %v\n", s, err)
			return exitUsage
		}
	}
	err := search(args, func(path string, argv []string) error { return syscall.Exec(path, argv, os.Environ()) })
	fmt.Fprintf(messages, "docker-init: exec %s failed: %v\n", args[0], err)
	return execFailure(err)
}

// defaultDisposition undoes the ignoring of a signal. The os/signal package leaves a signal ignored that was so when
// the process started.
func defaultDisposition(s unix.Signal) error {
	var action [4]uint64 // struct sigaction of the kernel: all zero is SIG_DFL with no flags and no mask
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func startAny(args []string, attr *syscall.SysProcAttr) (pid int, err error) {
	err = search(args, func(path string, argv []string) error {
		pid, err = syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: attr})
		return err
	})
	return pid, err
}

// defaultSearchPath is that of the C library for a process without PATH.
const defaultSearchPath = "/bin:/usr/bin"

// search tries to execute a command as execvp does: along PATH unless its name has a slash, a file without a known
// format by the shell. It returns nil after the first success, else why the most promising candidate failed.
func search(args []string, execute func(path string, argv []string) error) error {
	if args[0] == "" {
		return unix.ENOENT
	}
	candidates := []string{args[0]}
	if !strings.Contains(args[0], "/") {
		path, ok := os.LookupEnv("PATH")
		if !ok {
			path = defaultSearchPath
		}
		candidates = candidates[:0]
		for dir := range strings.SplitSeq(path, ":") {
			if dir == "" {
				dir = "."
			}
			candidates = append(candidates, dir+"/"+args[0])
		}
	}
	failure := error(unix.ENOENT)
	for _, path := range candidates {
		err := execute(path, args)
		if errors.Is(err, unix.ENOEXEC) {
			return execute("/bin/sh", append([]string{"sh", path}, args[1:]...))
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EACCES):
			failure = err // somewhere it is, but not for us; another directory may have a better one
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR):
			return err
		}
	}
	return failure
}

func execFailure(err error) int {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return exitNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM):
		return exitNoExecute
	}
	return exitUsage
}
