package layer_test

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"stated.dev/stated/graphdriver/layer"
)

// bigTar is 2000 files of 100 kB, half of them random.
func bigTar(b *testing.B, files, size int) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	body := make([]byte, size)
	for i := range files {
		rand.Read(body[:size/2])
		name := fmt.Sprintf("d%02d/f%04d", i%20, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1700000000, 0)}); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

// BenchmarkTar is the measure for BenchmarkRegister: tar -x of the same bytes, without and with a flush.
func BenchmarkTar(b *testing.B) {
	data := bigTar(b, 2000, 100_000)
	for _, flush := range []bool{false, true} {
		b.Run(fmt.Sprintf("flush=%t", flush), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				dir := b.TempDir()
				cmd := exec.Command("tar", "-x", "-C", dir)
				cmd.Stdin = bytes.NewReader(data)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				if flush {
					if out, err := exec.Command("sync", "-f", dir).CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
				}
				b.StopTimer()
				os.RemoveAll(dir)
				exec.Command("sync", "-f", filepath.Dir(dir)).Run()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkRegister(b *testing.B) {
	for _, c := range []struct{ files, size int }{{2000, 100_000}, {20_000, 1000}} {
		b.Run(fmt.Sprintf("%dx%d", c.files, c.size), func(b *testing.B) {
			data := bigTar(b, c.files, c.size)
			r := openRoot(b, b.TempDir(), "overlay2")
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				info := r.register(b, data, "")
				b.StopTimer()
				if err := r.Release(b.Context(), info.ChainID); err != nil {
					b.Fatal(err)
				}
				r.Close()
				exec.Command("sync", "-f", r.path).Run()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkRW makes and removes the layer of a container, with a Commit that costs nothing.
func BenchmarkRW(b *testing.B) {
	r := openRoot(b, b.TempDir(), "overlay2")
	info := r.register(b, base(b), "")
	commit := func(files []layer.File) error {
		if err := os.MkdirAll(filepath.Dir(files[0].Path), 0o755); err != nil {
			return err
		}
		for _, f := range files {
			if err := os.WriteFile(f.Path, f.Data, f.Mode); err != nil {
				return err
			}
		}
		return nil
	}
	unrecord := func(dirs []string) error { return os.RemoveAll(dirs[0]) }
	n := 0
	for b.Loop() {
		n++
		name := fmt.Sprint("c", n)
		if err := r.CreateRW(b.Context(), name, layer.RWRequest{Parent: info.ChainID, Commit: commit}); err != nil {
			b.Fatal(err)
		}
		if err := r.RemoveRW(b.Context(), name, unrecord); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens a store with 1000 writable layers, without and with a look at each.
func BenchmarkOpen(b *testing.B) {
	path := b.TempDir()
	r := openRoot(b, path, "overlay2")
	info := r.register(b, base(b), "")
	const count = 1000
	for i := range count {
		if err := r.CreateRW(b.Context(), fmt.Sprint("c", i), layer.RWRequest{Parent: info.ChainID}); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			if _, err := layer.Open(b.Context(), filepath.Join(path, "image/overlay2"), r.driver); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("names", func(b *testing.B) {
		for b.Loop() {
			s, err := layer.Open(b.Context(), filepath.Join(path, "image/overlay2"), r.driver)
			if err != nil {
				b.Fatal(err)
			}
			if got := len(s.Names()); got != count {
				b.Fatalf("%d names", got)
			}
		}
	})
}
