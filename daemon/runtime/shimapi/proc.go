package shimapi

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// StartTime returns when a process was started, in clock ticks since boot. With the pid it names one process for
// as long as the host is up.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	return parseStartTime(data)
}

// parseStartTime takes field 22 of a stat line. The name in field 2 may hold anything, so fields are counted from
// the last parenthesis.
func parseStartTime(stat []byte) (uint64, error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, fmt.Errorf("no process name in %q", stat)
	}
	fields := bytes.Fields(stat[end+1:])
	const startTime = 22 - 3 // the first field after the name is number 3
	if len(fields) <= startTime {
		return 0, fmt.Errorf("too few fields in %q", stat)
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}

// BootID returns the kernel's random identifier of this boot.
func BootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // compares equal to another failure, which is what a host without it needs
	}
	return strings.TrimSpace(string(data))
}

// Self describes the calling process.
func Self(version string) (Info, error) {
	start, err := StartTime(os.Getpid())
	if err != nil {
		return Info{}, err
	}
	return Info{Pid: os.Getpid(), StartTime: start, BootID: BootID(), Version: version}, nil
}
