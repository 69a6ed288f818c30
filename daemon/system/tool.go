package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"
)

// toolTimeout bounds how long a helper binary may take to say its version.
const toolTimeout = 5 * time.Second

// about is what a helper binary says of itself.
type about struct {
	version, commit string
	features        string // one line of JSON, or empty
}

// tool is a helper binary. It is asked once, and again when its file is another.
type tool struct {
	path     string
	parse    func(output string) (about, error)
	features string // argument that makes it list its features, or empty

	mu    sync.Mutex // guards what follows; held while the binary runs
	file  fs.FileInfo
	about about
}

func newTool(path string, parse func(string) (about, error), features string) *tool {
	return &tool{path: path, parse: parse, features: features}
}

// ask returns what the binary says of itself.
func (t *tool) ask(ctx context.Context) (about, error) {
	if t.path == "" {
		return about{}, errors.New("no such tool is set")
	}
	path, err := exec.LookPath(t.path)
	if err != nil {
		return about{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return about{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.file != nil && os.SameFile(t.file, info) && t.file.ModTime().Equal(info.ModTime()) && t.file.Size() == info.Size() {
		return t.about, nil
	}
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return about{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	found, err := t.parse(string(out))
	if err != nil {
		return about{}, fmt.Errorf("read version of %s: %w", path, err)
	}
	if t.features != "" {
		found.features = compact(exec.CommandContext(ctx, path, t.features))
	}
	t.file, t.about = info, found
	return found, nil
}

// compact returns the JSON that cmd prints on one line, or "" when it prints none: old runtimes have no such command.
func compact(cmd *exec.Cmd) string {
	out, err := cmd.Output()
	if err != nil {
		return ""
	}
	var line bytes.Buffer
	if json.Compact(&line, out) != nil {
		return ""
	}
	return line.String()
}

// parseRuntime reads "runc version 1.2.3", with "commit: abc" on a line of its own.
func parseRuntime(output string) (about, error) {
	var a about
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if commit, found := strings.CutPrefix(line, "commit:"); found {
			a.commit = strings.TrimSpace(commit)
		} else if _, version, found := strings.Cut(line, " version "); found && a.version == "" {
			a.version = version
		}
	}
	if a.version == "" {
		return a, fmt.Errorf("%q holds no version", output)
	}
	return a, nil
}

var initVersion = regexp.MustCompile(`version v?(\S+)(?: - git\.(\S+))?`)

// parseInit reads "tini version 0.19.0 - git.de40ad0".
func parseInit(output string) (about, error) {
	m := initVersion.FindStringSubmatch(output)
	if m == nil {
		return about{}, fmt.Errorf("%q holds no version", output)
	}
	return about{version: m[1], commit: m[2]}, nil
}
