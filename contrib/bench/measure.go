package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startEmpty: a start on a root without containers.
func (b *bench) startEmpty() error {
	return b.compare(row{name: "start, no containers", unit: "ms", goal: 0.25}, b.rounds, func(p *peer, _ int) (float64, error) {
		if err := p.down(syscall.SIGTERM); err != nil {
			return 0, err
		}
		d, err := p.up()
		return ms(d), err
	})
}

func networkName(i int) string { return fmt.Sprintf("net%02d", i) }

// fill makes the objects that a full start finds: volumes, networks, and containers that were never started, each
// with a volume and a network.
func (b *bench) fill(p *peer, containers, volumes, networks int) error {
	for i := range networks {
		if err := p.api.call("POST", "/networks/create", object{"Name": networkName(i), "Driver": "bridge"}, nil); err != nil {
			return err
		}
	}
	if _, err := rate(4, volumes, func(i int) error {
		return p.api.call("POST", "/volumes/create", object{"Name": fmt.Sprintf("vol%04d", i), "Labels": object{"n": fmt.Sprint(i)}}, nil)
	}); err != nil {
		return err
	}
	_, err := rate(4, containers, func(i int) error { return b.createOne(p, i, volumes, networks) })
	return err
}

func (b *bench) createOne(p *peer, i, volumes, networks int) error {
	_, err := p.api.create(fmt.Sprintf("c%04d", i), object{"Image": "busybox", "Cmd": []string{"true"}, "Labels": object{"n": fmt.Sprint(i)},
		"HostConfig": object{"Binds": []string{fmt.Sprintf("vol%04d:/data", i%volumes)}, "NetworkMode": networkName(i % networks)}})
	return err
}

// inspectAll lists all containers and inspects each.
func (b *bench) inspectAll(p *peer) error {
	var list []struct{ ID string }
	if err := p.api.call("GET", "/containers/json?all=1", nil, &list); err != nil {
		return err
	}
	for _, c := range list {
		if err := p.api.call("GET", "/containers/"+c.ID+"/json", nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// startFull: a start on 50 networks, 1000 volumes and first 200, then 1000 stopped containers; and what lists and
// memory cost with them.
func (b *bench) startFull() error {
	const volumes, networks, few, many = 1000, 50, 200, 1000
	if err := b.each(func(p *peer) error { return b.fill(p, few, volumes, networks) }); err != nil {
		return err
	}
	if err := b.compareStarts(fmt.Sprintf("start, %d stopped containers", few), 0); err != nil {
		return err
	}
	if err := b.each(func(p *peer) error {
		_, err := rate(4, many-few, func(i int) error { return b.createOne(p, few+i, volumes, networks) })
		return err
	}); err != nil {
		return err
	}
	if err := b.compareStarts(fmt.Sprintf("start, %d stopped containers, %d volumes, %d networks", many, volumes, networks), 0.12); err != nil {
		return err
	}
	full, part := b.rows[len(b.rows)-2], b.rows[len(b.rows)-4] // the rows that end at the first ping
	per := row{name: "start, each further stopped container", unit: "ms", goal: 0.1}
	for i := range per.values {
		per.values[i] = (full.values[i] - part.values[i]) / (many - few)
	}
	b.add(per)
	memory := row{name: "memory of the daemon, 1000 stopped containers", unit: "MiB", goal: 0.5}
	if err := b.compare(memory, 1, func(p *peer, _ int) (float64, error) {
		n, err := p.daemonPSS()
		return float64(n) / (1 << 20), err
	}); err != nil {
		return err
	}
	if err := b.compare(row{name: "list all of 1000 containers", unit: "ms", goal: 0.15}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(10, func(int) error { return p.api.call("GET", "/containers/json?all=1", nil, nil) })
	}); err != nil {
		return err
	}
	return b.compare(row{name: "list running, none of 1000", unit: "ms"}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(20, func(int) error { return p.api.call("GET", "/containers/json", nil, nil) })
	})
}

// compareStarts stops and starts both daemons in turn and adds two rows: until the first ping, and until the last
// container was inspected.
func (b *bench) compareStarts(name string, goal float64) error {
	ready, inspected := row{name: name, unit: "ms", goal: goal}, row{name: name + ", all inspected", unit: "ms", goal: goal}
	var first, last [2][]float64
	for range (b.rounds + 1) / 2 {
		for i, p := range b.peers {
			if err := p.down(syscall.SIGTERM); err != nil {
				return err
			}
			started := time.Now()
			d, err := p.up()
			if err != nil {
				return err
			}
			if err := b.inspectAll(p); err != nil {
				return err
			}
			first[i], last[i] = append(first[i], ms(d)), append(last[i], ms(time.Since(started)))
		}
	}
	for i := range b.peers {
		ready.values[i], inspected.values[i] = median(first[i]), median(last[i])
	}
	b.add(ready)
	b.add(inspected)
	return nil
}

// live: a start beside 50 running containers, and the memory that each takes.
func (b *bench) live() error {
	const n = 50
	var ids [2][]string
	for i, p := range b.peers {
		for range n {
			id, err := p.api.create("", object{"Image": "busybox", "Cmd": []string{"sleep", "100000"}})
			if err == nil {
				err = p.api.start(id)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			ids[i] = append(ids[i], id)
		}
	}
	if err := b.compareStarts("start beside 50 running containers", 0.2); err != nil {
		return err
	}
	if err := b.compare(row{name: "memory beside each running container", unit: "MiB", goal: 1}, 1, func(p *peer, _ int) (float64, error) {
		sum, count, err := p.shimPSS()
		if err == nil && count != n {
			err = fmt.Errorf("found %d shims, not %d", count, n)
		}
		return float64(sum) / (1 << 20) / n, err
	}); err != nil {
		return err
	}
	for i, p := range b.peers {
		for _, id := range ids[i] {
			if err := p.api.remove(id); err != nil {
				return err
			}
		}
	}
	return nil
}

// api: operations that run no process.
func (b *bench) api() error {
	ping := func(p *peer, _ int) (float64, error) {
		return timed(500, func(int) error { return p.api.call("GET", "/_ping", nil, nil) })
	}
	if err := b.compare(row{name: "ping", unit: "ms"}, b.rounds, ping); err != nil {
		return err
	}
	limit := b.rows[len(b.rows)-1].values[0]
	volume := func(name string) object { return object{"Name": name} }
	name := func(round, i int) string { return fmt.Sprintf("v%d-%d", round, i) }
	remove := func(p *peer, round, n int) error {
		for i := range n {
			if err := p.api.call("DELETE", "/volumes/"+name(round, i), nil, nil); err != nil {
				return err
			}
		}
		return nil
	}
	err := b.compare(row{name: "volume create", unit: "ms", goal: 0.6, limit: limit, limitOf: "ping"}, b.rounds, func(p *peer, round int) (float64, error) {
		v, err := timed(100, func(i int) error { return p.api.call("POST", "/volumes/create", volume(name(round, i)), nil) })
		return v, errors.Join(err, remove(p, round, 100))
	})
	if err != nil {
		return err
	}
	err = b.compare(row{name: "volume create, 8 clients", unit: "/s", goal: 3, more: true}, b.rounds, func(p *peer, round int) (float64, error) {
		v, err := rate(8, 800, func(i int) error { return p.api.call("POST", "/volumes/create", volume(name(round, i)), nil) })
		return v, errors.Join(err, remove(p, round, 800))
	})
	if err != nil {
		return err
	}
	if err := b.each(func(p *peer) error { return p.api.call("POST", "/volumes/create", volume("looked-at"), nil) }); err != nil {
		return err
	}
	err = b.compare(row{name: "volume inspect", unit: "ms", goal: 0.8, limit: limit, limitOf: "ping"}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(500, func(int) error { return p.api.call("GET", "/volumes/looked-at", nil, nil) })
	})
	if err != nil {
		return err
	}
	if err := b.each(func(p *peer) error {
		_, err := p.api.create("looked-at", object{"Image": "busybox"})
		return err
	}); err != nil {
		return err
	}
	err = b.compare(row{name: "container inspect", unit: "ms", goal: 0.8, limit: limit, limitOf: "ping"}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(500, func(int) error { return p.api.call("GET", "/containers/looked-at/json", nil, nil) })
	})
	if err != nil {
		return err
	}
	network := func(p *peer, name string) error {
		if err := p.api.call("POST", "/networks/create", object{"Name": name, "Driver": "bridge"}, nil); err != nil {
			return err
		}
		return p.api.call("DELETE", "/networks/"+name, nil, nil)
	}
	err = b.compare(row{name: "network create + rm", unit: "ms", goal: 0.25}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(3, func(i int) error { return network(p, fmt.Sprintf("n%d", i)) })
	})
	if err != nil {
		return err
	}
	single := b.rows[len(b.rows)-1]
	eight := row{name: "network create + rm, 8 clients", unit: "/s", more: true, goal: 0}
	if err := b.compare(eight, 3, func(p *peer, round int) (float64, error) {
		return rate(8, 16, func(i int) error { return network(p, fmt.Sprintf("n%d-%d", round, i)) })
	}); err != nil {
		return err
	}
	last := b.rows[len(b.rows)-1]
	b.add(row{name: "network create + rm, 8 clients over 1", unit: "×", more: true,
		values: [2]float64{last.values[0] * single.values[0] / 1000, last.values[1] * single.values[1] / 1000}})
	err = b.compare(row{name: "container create + rm", unit: "ms", goal: 0.4}, b.rounds, func(p *peer, _ int) (float64, error) {
		return timed(50, func(int) error {
			id, err := p.api.create("", object{"Image": "busybox"})
			if err != nil {
				return err
			}
			return p.api.remove(id)
		})
	})
	if err != nil {
		return err
	}
	return b.eventFanout()
}

// eventFanout: the time from a volume's creation until the last of 100 listeners has its event.
func (b *bench) eventFanout() error {
	const listeners = 100
	return b.compare(row{name: "event, last of 100 listeners", unit: "ms"}, 3, func(p *peer, round int) (float64, error) {
		got := make(chan struct{}, listeners*64)
		var bodies []io.Closer
		var wg sync.WaitGroup
		for range listeners {
			resp, err := p.api.http.Get("http://d/v1.51/events?filters=" + `%7B%22type%22%3A%5B%22volume%22%5D%2C%22event%22%3A%5B%22create%22%5D%7D`)
			if err != nil {
				return 0, err
			}
			bodies = append(bodies, resp.Body)
			wg.Go(func() {
				lines := bufio.NewScanner(resp.Body)
				for lines.Scan() {
					got <- struct{}{}
				}
			})
		}
		v, err := timed(20, func(i int) error {
			if err := p.api.call("POST", "/volumes/create", object{"Name": fmt.Sprintf("ev%d-%d", round, i)}, nil); err != nil {
				return err
			}
			for range listeners {
				select {
				case <-got:
				case <-time.After(10 * time.Second):
					return errors.New("an event was lost")
				}
			}
			return nil
		})
		for _, c := range bodies {
			_ = c.Close() // ends the listener
		}
		wg.Wait()
		return v, err
	})
}

// runTrue creates and starts a container and waits for its end.
func runTrue(p *peer, spec object) (id string, err error) {
	if id, err = p.api.create("", spec); err == nil {
		err = p.api.start(id)
	}
	if err == nil {
		err = p.api.wait(id)
	}
	return id, err
}

// containers: operations that run a process, against runc alone as the limit.
func (b *bench) containers() error {
	bundle, err := b.runcBundle()
	if err != nil {
		return err
	}
	for _, mode := range []struct {
		network string
		goal    float64
	}{{"none", 0.4}, {"host", 0.4}, {"bridge", 0.4}} {
		r := row{name: "run true, network " + mode.network, unit: "ms", goal: mode.goal, limitOf: "runc run"}
		var limit []float64
		err := b.compare(r, b.rounds, func(p *peer, round int) (float64, error) {
			var times []float64
			for range 5 {
				started := time.Now()
				id, err := runTrue(p, object{"Image": "busybox", "Cmd": []string{"true"}, "HostConfig": object{"NetworkMode": mode.network}})
				times = append(times, ms(time.Since(started)))
				if err = errors.Join(err, p.api.remove(id)); err != nil { // the removal has a time of its own
					return 0, err
				}
			}
			v := median(times)
			if p != b.peers[0] {
				return v, nil
			}
			l, err := timed(5, func(i int) error { return b.runcRun(bundle, fmt.Sprintf("b%d-%d", round, i)) })
			limit = append(limit, l)
			return v, err
		})
		if err != nil {
			return err
		}
		b.rows[len(b.rows)-1].limit = median(limit)
	}
	if err := b.compare(row{name: "run true, 8 clients", unit: "/s", more: true}, 3, func(p *peer, _ int) (float64, error) {
		return rate(8, 32, func(int) error {
			id, err := runTrue(p, object{"Image": "busybox", "Cmd": []string{"true"}})
			return errors.Join(err, p.api.remove(id))
		})
	}); err != nil {
		return err
	}
	var ids [2]string
	for i, p := range b.peers {
		if ids[i], err = p.api.create("", object{"Image": "busybox", "Cmd": []string{"sleep", "100000"}}); err == nil {
			err = p.api.start(ids[i])
		}
		if err != nil {
			return err
		}
	}
	err = b.compare(row{name: "exec true", unit: "ms"}, b.rounds, func(p *peer, _ int) (float64, error) {
		id := ids[0]
		if p == b.peers[1] {
			id = ids[1]
		}
		return timed(10, func(int) error {
			var made struct{ ID string }
			if err := p.api.call("POST", "/containers/"+id+"/exec", object{"Cmd": []string{"true"}, "AttachStdout": true, "AttachStderr": true}, &made); err != nil {
				return err
			}
			return p.api.call("POST", "/exec/"+made.ID+"/start", object{}, nil)
		})
	})
	for i, p := range b.peers {
		err = errors.Join(err, p.api.remove(ids[i]))
	}
	return err
}

// runcBundle makes a bundle that runs true with runc's default spec.
func (b *bench) runcBundle() (string, error) {
	bundle := filepath.Join(b.dir, "bundle")
	root := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	if out, err := exec.Command("tar", "-xf", b.image, "-C", root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("unpack the image: %w: %s", err, out)
	}
	cmd := exec.Command(b.runc, "spec")
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc spec: %w: %s", err, out)
	}
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", err
	}
	process := spec["process"].(map[string]any)
	process["args"], process["terminal"] = []string{"/bin/true"}, false
	if data, err = json.Marshal(spec); err != nil {
		return "", err
	}
	return bundle, os.WriteFile(path, data, 0o644)
}

func (b *bench) runcRun(bundle, id string) error {
	out, err := exec.Command(b.runc, "--root", filepath.Join(b.dir, "runc"), "run", "--bundle", bundle, id).CombinedOutput()
	if err != nil {
		return fmt.Errorf("runc run: %w: %s", err, out)
	}
	return nil
}

// images: an import of 200 MB, and a load of the same volume in ten layers; the limit is tar -x of the same bytes.
func (b *bench) images() error {
	const files, size, layers = 2000, 100_000, 10
	one := filepath.Join(b.dir, "one.tar")
	if err := writeTar(one, 0, files, size); err != nil {
		return err
	}
	var parts []string
	for l := range layers {
		part := filepath.Join(b.dir, fmt.Sprintf("layer%d.tar", l))
		if err := writeTar(part, l*files/layers, files/layers, size); err != nil {
			return err
		}
		parts = append(parts, part)
	}
	archive := filepath.Join(b.dir, "archive.tar")
	if err := writeArchive(archive, parts); err != nil {
		return err
	}
	untar := func(list []string) (float64, error) {
		dir := filepath.Join(b.dir, "untar")
		v, err := timed(1, func(int) error {
			for _, t := range list {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				if out, err := exec.Command("tar", "-xf", t, "-C", dir).CombinedOutput(); err != nil {
					return fmt.Errorf("tar: %w: %s", err, out)
				}
			}
			return nil
		})
		return v, errors.Join(err, os.RemoveAll(dir))
	}
	measure := func(name string, list []string, up func(p *peer) (string, error)) error {
		var limit []float64
		err := b.compare(row{name: name, unit: "ms", limitOf: "tar -x"}, 3, func(p *peer, _ int) (float64, error) {
			started := time.Now()
			ref, err := up(p)
			took := ms(time.Since(started))
			if err != nil {
				return 0, err
			}
			if err := p.api.call("DELETE", "/images/"+ref+"?force=1", nil, nil); err != nil {
				return 0, err
			}
			if p == b.peers[0] {
				l, err := untar(list)
				if err != nil {
					return 0, err
				}
				limit = append(limit, l)
			}
			return took, nil
		})
		if err == nil {
			b.rows[len(b.rows)-1].limit = median(limit)
		}
		return err
	}
	upload := func(p *peer, path, file string) error {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		return p.api.send("POST", path, "application/x-tar", f, nil)
	}
	if err := measure("image import, 200 MB", []string{one}, func(p *peer) (string, error) {
		return "big:latest", upload(p, "/images/create?fromSrc=-&repo=big", one)
	}); err != nil {
		return err
	}
	return measure("image load, 200 MB in 10 layers", parts, func(p *peer) (string, error) {
		return "loaded:latest", upload(p, "/images/load", archive)
	})
}

// writeTar makes a tar of files, half of whose bytes are random.
func writeTar(path string, first, files, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	tw := tar.NewWriter(out)
	random := rand.NewChaCha8([32]byte{1, byte(first)})
	data := make([]byte, size)
	for i := range files {
		_, _ = random.Read(data[:size/2]) // never fails
		if err := tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir%d/file%d", (first+i)%50, first+i), Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := tw.Write(data); err != nil {
			return err
		}
	}
	return errors.Join(tw.Close(), out.Flush())
}

// writeArchive makes a docker-archive of the layers.
func writeArchive(path string, layers []string) error {
	var diffIDs, names []string
	for i, l := range layers {
		out, err := exec.Command("sha256sum", l).Output()
		if err != nil {
			return err
		}
		diffIDs = append(diffIDs, "sha256:"+strings.Fields(string(out))[0])
		names = append(names, fmt.Sprintf("layer%d/layer.tar", i))
	}
	config, err := json.Marshal(object{"architecture": "amd64", "os": "linux", "config": object{}, "rootfs": object{"type": "layers", "diff_ids": diffIDs}})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]object{{"Config": "config.json", "RepoTags": []string{"loaded:latest"}, "Layers": names}})
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	add := func(name string, size int64, r io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := io.Copy(tw, r)
		return err
	}
	for i, l := range layers {
		in, err := os.Open(l)
		if err != nil {
			return err
		}
		info, err := in.Stat()
		if err == nil {
			err = add(names[i], info.Size(), in)
		}
		if err := errors.Join(err, in.Close()); err != nil {
			return err
		}
	}
	if err := add("config.json", int64(len(config)), bytes.NewReader(config)); err != nil {
		return err
	}
	if err := add("manifest.json", int64(len(manifest)), bytes.NewReader(manifest)); err != nil {
		return err
	}
	return tw.Close()
}

// countFlushes counts fsync, fdatasync and syncfs calls for each durable operation.
func (b *bench) countFlushes() error {
	const n = 10
	count := func(name string, prepare, op func(p *peer, i int) error) error {
		return b.compare(row{name: "flushes: " + name, unit: "", goal: 1}, 1, func(p *peer, _ int) (float64, error) {
			if prepare != nil {
				for i := range n {
					if err := prepare(p, i); err != nil {
						return 0, err
					}
				}
			}
			calls, err := p.flushes(func() error {
				for i := range n {
					if err := op(p, i); err != nil {
						return err
					}
				}
				return nil
			})
			return float64(calls) / n, err
		})
	}
	volume := func(i int) string { return fmt.Sprintf("fl%d", i) }
	steps := []struct {
		name string
		op   func(p *peer, i int) error
	}{
		{"volume create", func(p *peer, i int) error {
			return p.api.call("POST", "/volumes/create", object{"Name": volume(i)}, nil)
		}},
		{"volume rm", func(p *peer, i int) error { return p.api.call("DELETE", "/volumes/"+volume(i), nil, nil) }},
		{"network create", func(p *peer, i int) error {
			return p.api.call("POST", "/networks/create", object{"Name": volume(i), "Driver": "bridge"}, nil)
		}},
		{"network rm", func(p *peer, i int) error { return p.api.call("DELETE", "/networks/"+volume(i), nil, nil) }},
		{"container create", func(p *peer, i int) error {
			_, err := p.api.create(volume(i), object{"Image": "busybox", "Cmd": []string{"true"}})
			return err
		}},
		{"container start to exit", func(p *peer, i int) error {
			if err := p.api.start(volume(i)); err != nil {
				return err
			}
			return p.api.wait(volume(i))
		}},
		{"container rm", func(p *peer, i int) error { return p.api.remove(volume(i)) }},
		{"image tag", func(p *peer, i int) error {
			return p.api.call(http.MethodPost, "/images/busybox/tag?repo=busybox&tag="+volume(i), nil, nil)
		}},
	}
	for _, s := range steps {
		if err := count(s.name, nil, s.op); err != nil {
			return err
		}
	}
	return nil
}
