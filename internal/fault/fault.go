// Package fault names the instants at which a crash test may end the process or make an operation fail.
//
// A point is named by what has just been done: "containers.create.recorded". Tests arm one through the
// environment variable STATED_FAULT, a comma-separated list of NAME=ACTION, where ACTION is "kill" (the process
// ends at once, as by SIGKILL), "error" (Point returns ErrInjected), or "stop" (SIGSTOP, for a test that wants to
// look around). Without the variable a point costs one map look-up in a nil map.
package fault

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// EnvVar holds the armed points.
const EnvVar = "STATED_FAULT"

// ErrInjected is what an armed point returns for the action "error".
var ErrInjected = errors.New("injected fault")

var armed = parse(os.Getenv(EnvVar))

// Point does what the environment asked for at this name, and returns nil otherwise.
func Point(name string) error {
	switch armed[name] {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // does not return
		select {}
	case "stop":
		return syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	case "error":
		return fmt.Errorf("%s: %w", name, ErrInjected)
	}
	return nil
}

func parse(s string) map[string]string {
	if s == "" {
		return nil
	}
	points := map[string]string{}
	for item := range strings.SplitSeq(s, ",") {
		name, action, _ := strings.Cut(item, "=")
		points[name] = action
	}
	return points
}
