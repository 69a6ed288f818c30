// Package pid1 is the init process of containers that ask for one (--init): it starts the container's command in a
// process group of its own, in the terminal's foreground, passes signals on to it, reaps every orphan, and ends as the
// command ended.
//
// It never decides to stop anything: a signal it gets is the command's business. It uses only the Go runtime and system
// calls, opens no file but what the command's search path names, and holds no locks.
package pid1

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// Exit codes of shells for a command that is not there and one that cannot be executed.
const (
	exitUsage     = 1
	exitNotFound  = 127
	exitNoExecute = 126
	exitSignalled = 128 // plus the signal's number
)

// stageForeground is the first argument by which Main calls itself again to finish the start of a command that has a
// terminal.
const stageForeground = "--foreground-stage"

// version is what "docker-init --version" prints; its form is what those who ask expect.
const version = "stated-init version 1"

// Main runs the init with the arguments that follow the program's name, "-- command argument...", and returns the
// exit code: the command's own, or 128 and the number of the signal that ended it. It returns when the command has
// ended; the kernel then ends what is left in the container.
func Main(args []string) int {
	if len(args) > 0 && args[0] == stageForeground {
		return finishForeground(args[1:], os.Stderr)
	}
	if len(args) == 1 && args[0] == "--version" {
		fmt.Println(version)
		return 0
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "docker-init: no command; usage: docker-init -- COMMAND [ARGUMENT]...")
		return exitUsage
	}
	return supervise(args, os.Stderr)
}

func supervise(args []string, messages io.Writer) int {
	runtime.GOMAXPROCS(1) // one container, one small process

	// Both are asked for before the command exists, so that no signal is lost. A signal that comes while one of its
	// kind waits is dropped by the kernel, too; deaths are counted by looking, not by signals.
	deaths := make(chan os.Signal, 1)
	signal.Notify(deaths, unix.SIGCHLD)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	defer signal.Stop(deaths)
	defer signal.Stop(signals)

	child, err := start(args)
	if err != nil {
		fmt.Fprintf(messages, "docker-init: exec %s failed: %v\n", args[0], err)
		return execFailure(err)
	}
	for {
		select {
		case s := <-signals:
			if number, ok := s.(unix.Signal); ok && forwarded(number) {
				// The command may have ended in this instant; its death is on its way then.
				_ = unix.Kill(child, number)
			}
		case <-deaths:
			if code, ended := reap(child); ended {
				return code
			}
		}
	}
}

// forwarded says whether a signal is passed on. Those that tell of a fault of the receiver, of children, and of a
// background process at the terminal are init's own. So is SIGURG: the Go runtime sends it to itself all the time, and
// nobody can tell those from others.
func forwarded(s unix.Signal) bool {
	switch s {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGTTIN, unix.SIGTTOU,
		unix.SIGFPE, unix.SIGILL, unix.SIGSEGV, unix.SIGBUS, unix.SIGABRT, unix.SIGTRAP, unix.SIGSYS:
		return false
	}
	return true
}

// reap takes all processes that have ended. It returns the exit code when child was among them.
func reap(child int) (code int, ended bool) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
		case err != nil || pid == 0: // none left, or none of those left has ended
			return code, ended
		case pid == child && status.Exited():
			code, ended = status.ExitStatus(), true
		case pid == child && status.Signaled():
			code, ended = exitSignalled+int(status.Signal()), true
		}
	}
}
