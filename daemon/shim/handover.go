package shim

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/go-runc"
)

// handover is how the task service starts runc. When runc is to make a process that has pipes, it gets the process's
// ends of them in place of the streams that the task service opened.
type handover struct {
	runc.ProcessMonitor
	find func(id string) *process
}

// Start starts runc.
func (h handover) Start(cmd *exec.Cmd) (chan runc.Exit, error) {
	h.prepare(cmd)
	return h.ProcessMonitor.Start(cmd)
}

// StartLocked starts runc from a thread that stays.
func (h handover) StartLocked(cmd *exec.Cmd) (chan runc.Exit, error) {
	h.prepare(cmd)
	return h.ProcessMonitor.StartLocked(cmd)
}

func (h handover) prepare(cmd *exec.Cmd) {
	id, ok := madeBy(cmd.Args)
	if !ok {
		return
	}
	if p := h.find(id); p != nil && !p.tty {
		p.stdio.give(cmd)
	}
}

// madeBy says which process a runc command is to make; init has the empty name. The task service names it in the file
// that the process's pid goes to.
func madeBy(args []string) (id string, ok bool) {
	i := slices.Index(args, "--pid-file")
	if i < 0 || i+1 == len(args) {
		return "", false
	}
	if !slices.Contains(args[:i], "exec") {
		return "", true // create or restore
	}
	return strings.TrimSuffix(filepath.Base(args[i+1]), ".pid"), true
}

// give makes the process's ends the streams of cmd. They stay open here until release.
func (s *stdio) give(cmd *exec.Cmd) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held.out == nil {
		return // the process has ended already
	}
	cmd.Stdout, cmd.Stderr = s.held.out, s.held.err
	if s.held.in != nil {
		cmd.Stdin = s.held.in
	}
}
