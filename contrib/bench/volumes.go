package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// manyVolumes is how many volumes the lists and the starts of this file are measured with.
const manyVolumes = 10_000

// volumes: the list of 10,000 volumes, and what they add to a start.
func (b *bench) volumes() error {
	without, err := b.volumeStarts(0)
	if err != nil {
		return err
	}
	if err := b.each(func(p *peer) error {
		_, err := rate(8, manyVolumes, func(i int) error {
			return p.api.call("POST", "/volumes/create", object{"Name": fmt.Sprintf("many%05d", i), "Labels": object{"n": fmt.Sprint(i)}}, nil)
		})
		return err
	}); err != nil {
		return err
	}
	list := row{name: fmt.Sprintf("list %d volumes", manyVolumes), unit: "/s", more: true, goal: 2}
	if err := b.compare(list, b.rounds, func(p *peer, _ int) (float64, error) {
		return rate(1, 10, func(int) error { return p.listVolumes(manyVolumes) })
	}); err != nil {
		return err
	}
	with, err := b.volumeStarts(manyVolumes)
	if err != nil {
		return err
	}
	for step, name := range []string{"first ping", "first list"} {
		r := row{name: fmt.Sprintf("start to %s, added by %d volumes", name, manyVolumes), unit: "ms", goal: 0.5}
		for i := range r.values {
			r.values[i] = with[step].values[i] - without[step].values[i]
		}
		b.add(r)
	}
	return b.each(func(p *peer) error {
		return p.api.call("POST", "/volumes/prune?filters="+url.QueryEscape(`{"all":["true"],"label":["n"]}`), nil, nil)
	})
}

// listVolumes lists all volumes, and checks that there are at least so many.
func (p *peer) listVolumes(count int) error {
	resp, err := p.api.get("/volumes")
	if err != nil {
		return err
	}
	// To decode so much takes longer than either daemon takes to answer.
	if len(resp) < count*100 {
		return fmt.Errorf("a list of %d bytes cannot hold %d volumes", len(resp), count)
	}
	return nil
}

// volumeStarts stops and starts both daemons in turn and adds and returns two rows: until the first ping, and until all
// volumes have been listed.
func (b *bench) volumeStarts(count int) ([2]row, error) {
	name := fmt.Sprintf("start, %d volumes", count)
	rows := [2]row{{name: name, unit: "ms"}, {name: name + ", all listed", unit: "ms"}}
	var times [2][2][]float64
	for range b.rounds {
		for i, p := range b.peers {
			if err := p.down(syscall.SIGTERM); err != nil {
				return rows, err
			}
			started := time.Now()
			ping, err := p.up()
			if err == nil {
				err = p.listVolumes(count)
			}
			if err != nil {
				return rows, err
			}
			times[0][i] = append(times[0][i], ms(ping))
			times[1][i] = append(times[1][i], ms(time.Since(started)))
		}
	}
	for step := range rows {
		for i := range b.peers {
			rows[step].values[i] = median(times[step][i])
		}
		b.add(rows[step])
	}
	return rows, nil
}

// copyUp: what the creation of a container takes longer when a new volume is filled with a tree of the image. The limit
// is cp -a of that tree on the same file system: without a flush, as dockerd copies, and with the one that stated makes
// before it counts the volume as filled.
func (b *bench) copyUp() error {
	tree := filepath.Join(b.dir, "tree")
	if err := writeTree(tree, b.treeSize<<20); err != nil {
		return err
	}
	archive := filepath.Join(b.dir, "tree.tar")
	if out, err := exec.Command("tar", "--xattrs", "--sparse", "-cf", archive, "-C", b.dir, "tree").CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	if err := b.each(func(p *peer) error { return p.importImage(archive, "tree") }); err != nil {
		return err
	}
	if err := os.Remove(archive); err != nil {
		return err
	}
	unix.Sync() // what was written so far is not to be paid for by the first copy
	plain := row{name: fmt.Sprintf("copy-up, %d MB", b.treeSize), unit: "ms", goal: 1.2, goalOf: ofLimit, limitOf: "cp -a"}
	var limits, flushed []float64
	err := b.compare(plain, b.rounds, func(p *peer, round int) (float64, error) {
		if p == b.peers[0] {
			copied, synced, err := copyTree(tree, filepath.Join(b.dir, "copy"))
			if err != nil {
				return 0, err
			}
			limits, flushed = append(limits, copied), append(flushed, synced)
		}
		return p.fillVolume("tree", "/tree", fmt.Sprintf("filled%d", round))
	})
	if err != nil {
		return err
	}
	last := &b.rows[len(b.rows)-1]
	last.limit = median(limits)
	same := *last
	same.name, same.limit, same.limitOf = same.name+", both flushed", median(flushed), "cp -a, sync -f"
	b.add(same)
	return nil
}

// fillVolume creates a container with a new volume at dir, removes both and flushes what is left. It returns the time
// of the creation in milliseconds.
func (p *peer) fillVolume(image, dir, volume string) (float64, error) {
	started := time.Now()
	id, err := p.api.create("", object{"Image": image, "Cmd": []string{"true"}, "HostConfig": object{"Binds": []string{volume + ":" + dir}}})
	took := ms(time.Since(started))
	if err != nil {
		return 0, err
	}
	err = errors.Join(p.api.remove(id), p.api.call("DELETE", "/volumes/"+volume, nil, nil))
	unix.Sync()
	return took, err
}

// copyTree copies with cp -a, flushes, and removes the copy. It returns the milliseconds until the copy was made, and
// until it was flushed.
func copyTree(from, to string) (copied, flushed float64, err error) {
	started := time.Now()
	if out, err := exec.Command("cp", "-a", "--reflink=never", from, to).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("cp: %w: %s", err, out)
	}
	copied = ms(time.Since(started))
	if out, err := exec.Command("sync", "-f", to).CombinedOutput(); err != nil {
		return 0, 0, fmt.Errorf("sync: %w: %s", err, out)
	}
	flushed = ms(time.Since(started))
	err = os.RemoveAll(to)
	unix.Sync()
	return copied, flushed, err
}

// writeTree makes a tree with files of mixed sizes, size bytes in all: of ten files nine are small and share a tenth of
// the bytes. Every fiftieth file has a second name, every twentieth an extended attribute; one file has holes.
func writeTree(dir string, size int64) error {
	const perDir, mean = 100, 100 << 10
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 10*mean)
	for i := range data {
		data[i] = byte(random.Uint32())
	}
	files := int(size / mean)
	for i := range files {
		sub := filepath.Join(dir, fmt.Sprintf("dir%03d", i/perDir))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		path := filepath.Join(sub, fmt.Sprintf("file%d", i))
		n := mean / 9
		if i%10 == 0 {
			n = 9 * mean
		}
		if err := os.WriteFile(path, data[i%mean:][:n], 0o644); err != nil {
			return err
		}
		if i%20 == 0 {
			if err := unix.Setxattr(path, "user.bench", []byte("value"), 0); err != nil {
				return err
			}
		}
		if i%50 == 0 {
			if err := os.Link(path, path+"-link"); err != nil {
				return err
			}
		}
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		return err
	}
	_, err = sparse.WriteAt(data, 4<<20)
	return errors.Join(err, sparse.Truncate(8<<20), sparse.Close())
}
