// Package testenv looks at a host from outside of the daemon: what is mounted, linked, bound and kept on disk. Tests
// compare two looks to find what a crash left behind. It changes nothing and holds no locks.
package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Roots are the directories of the daemon that is looked at.
type Roots struct {
	Data, Exec string
}

// State is what one look saw: lines of text, each with its kind in front.
type State []string

// Observe looks at the calling thread's network and mount namespace and at the daemon's directories.
func Observe(r Roots) (State, error) {
	var s State
	for _, look := range []func(Roots) ([]string, error){mounts, links, rules, sockets, shims, directories} {
		lines, err := look(r)
		if err != nil {
			return nil, err
		}
		s = append(s, lines...)
	}
	slices.Sort(s)
	return slices.Compact(s), nil
}

// Leaks are the things that are there now and were not before.
func (s State) Leaks(before State) []string {
	return slices.DeleteFunc(slices.Clone(s), func(line string) bool { return slices.Contains(before, line) })
}

func mounts(r Roots) ([]string, error) {
	data, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 4 && (strings.HasPrefix(f[4], r.Data) || strings.HasPrefix(f[4], r.Exec)) {
			list = append(list, "mount "+f[4])
		}
	}
	return list, nil
}

func links(Roots) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var list []string
	for _, i := range all {
		list = append(list, "link "+i.Name)
	}
	return list, nil
}

// counters are what changes in rules without anybody having changed them.
var counters = regexp.MustCompile(`packets \d+ bytes \d+|# handle \d+`)

func rules(Roots) ([]string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("nft", "list", "ruleset")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packet rules: %w: %s", err, stderr.String())
	}
	var list []string
	for line := range strings.Lines(counters.ReplaceAllString(string(out), "")) {
		list = append(list, "rule "+strings.TrimSpace(line))
	}
	return list, nil
}

// sockets lists what listens, from the kernel's tables.
func sockets(Roots) ([]string, error) {
	var list []string
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, err := os.ReadFile("/proc/thread-self/net/" + table)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > 3 && (f[3] == "0A" || f[3] == "07") { // LISTEN, and what UDP has instead
				list = append(list, "socket "+table+" "+f[1])
			}
		}
	}
	return list, nil
}

// shims lists the processes that stay beside containers.
func shims(r Roots) ([]string, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, path := range paths {
		cmdline, err := os.ReadFile(path)
		if err != nil {
			continue // it ended meanwhile
		}
		words := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if strings.Contains(words, "stated-shim") && strings.Contains(words, r.Exec) {
			list = append(list, "process "+words)
		}
	}
	return list, nil
}

// directories lists what stores keep one entry of for each object.
func directories(r Roots) ([]string, error) {
	var list []string
	for _, pattern := range []string{
		r.Data + "/containers/*", r.Data + "/overlay2/*", r.Data + "/overlay2/l/*", r.Data + "/image/*/layerdb/*/*", r.Data + "/volumes/*",
		r.Data + "/tmp/*", r.Data + "/.stated/*/*", r.Exec + "/*/*",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			info, err := os.Lstat(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if info.IsDir() || info.Mode()&fs.ModeSymlink != 0 {
				list = append(list, "entry "+path)
			}
		}
	}
	return list, nil
}
