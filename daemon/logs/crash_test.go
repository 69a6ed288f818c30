package logs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/internal/fault"
)

// childEnv tells the re-executed test binary where to write.
const childEnv = "STATED_TEST_LOGS_CHILD"

const childRecords = 400

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		child(path)
		return
	}
	os.Exit(m.Run())
}

func childOptions(path string) logs.Options {
	return logs.Options{Driver: logs.JSONFile, Path: path, MaxSize: 2000, MaxFiles: 100, Compress: strings.Contains(path, "gz")}
}

// child writes records and says of each that it is in the file.
func child(path string) {
	w, err := logs.NewWriter(childOptions(path))
	if err != nil {
		panic(err)
	}
	for n := range childRecords {
		if err := w.Write("stdout", at(n), []byte(line(n))); err != nil {
			panic(err)
		}
		if err := w.Flush(); err != nil {
			panic(err)
		}
		fmt.Println(n)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
}

// A writer that dies in the middle of a rotation has lost nothing, and the next one puts the files right.
func TestCrashes(t *testing.T) {
	for _, c := range []struct{ point, path string }{
		{"logs.rotate.shifted", "c.log"},
		{"logs.rotate.moved", "c.log"},
		{"logs.rotate.moved", "gz.log"},
		{"logs.compress.renamed", "gz.log"},
	} {
		t.Run(c.point+" "+c.path, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), c.path)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childEnv+"="+path, fault.EnvVar+"="+c.point+"=kill")
			out, err := cmd.Output()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("child ended with %v, want to be killed", err)
			}
			said := strings.Count(string(out), "\n")
			if said == 0 || said == childRecords {
				t.Fatalf("child wrote %d records", said)
			}
			o := childOptions(path)
			got := all(t, o)
			if len(got) < said {
				t.Fatalf("%d of %d records are left", len(got), said)
			}
			check(t, "after the crash", got, want(0, len(got)))

			w := newWriter(t, o)
			check(t, "after the repair", all(t, o), got)
			write(t, w, len(got), 400)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			check(t, "in the end", all(t, o), want(0, 400))
			for _, name := range files(t, o) {
				if strings.HasSuffix(name, ".new") || strings.HasSuffix(name, ".tmp") {
					t.Errorf("litter: %s", name)
				}
				plain := name != c.path && !strings.HasSuffix(name, ".gz")
				if o.Compress && plain {
					t.Errorf("%s is not compressed", name)
				}
			}
		})
	}
}

// When a rotation fails the records stay in the old file, and it is tried again.
func TestFailedRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.log")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path, fault.EnvVar+"=logs.rotate.moved=error")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "rotate log "+path+": logs.rotate.moved: injected fault") {
		t.Fatalf("child ended with %v: %s", err, out)
	}
	got := all(t, childOptions(path))
	check(t, "after the failure", got, want(0, len(got)))
	if len(got) == 0 || !slices.Equal(files(t, childOptions(path)), []string{"c.log"}) {
		t.Errorf("%d records, files %v", len(got), files(t, childOptions(path)))
	}
}
