package interchange

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
)

type object = map[string]any

type list = []any

// populate makes a host full of objects: images, volumes, networks and containers in every state a stopped host has.
func populate(e *engine) {
	e.t.Helper()
	importBusybox(e)
	e.do(http.MethodPost, "/images/load", twoLayers(e.t))
	e.do(http.MethodPost, "/images/two:layers/tag?repo=registry.example/team/two&tag=v1", nil)

	e.do(http.MethodPost, "/volumes/create", object{"Name": "plain"})
	e.do(http.MethodPost, "/volumes/create", object{"Name": "labelled", "Labels": object{"a": "1", "b": ""}})
	e.do(http.MethodPost, "/volumes/create", object{"Name": "memory", "DriverOpts": object{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"}})

	e.do(http.MethodPost, "/networks/create", object{"Name": "app", "Labels": object{"tier": "web"},
		"Options": object{"com.docker.network.bridge.name": "br-app0", "com.docker.network.driver.mtu": "1400"},
		"IPAM":    object{"Config": list{object{"Subnet": "10.77.0.0/16", "IPRange": "10.77.5.0/24", "Gateway": "10.77.5.254", "AuxiliaryAddresses": object{"printer": "10.77.5.7"}}}}})
	e.do(http.MethodPost, "/networks/create", object{"Name": "inner", "Internal": true})
	e.do(http.MethodPost, "/networks/create", object{"Name": "six", "EnableIPv6": true, "Attachable": true,
		"IPAM": object{"Config": list{object{"Subnet": "10.78.0.0/24"}, object{"Subnet": "fd00:78::/64", "Gateway": "fd00:78::1"}}}})

	domain, users := "example.org", ""
	if e.remapped {
		domain = ""    // dockerd fails to set one in a user namespace
		users = "host" // for what remapped users may not
	}
	create(e, "fresh", object{"Image": "busybox"})
	create(e, "named", object{"Image": "two:layers", "Cmd": list{"sh", "-c", "exit 0"}, "HostConfig": object{"PublishAllPorts": true}})
	run(e, "exited", object{"Image": "busybox", "Cmd": list{"sh", "-c", "echo out; echo err >&2; echo kept >/file; rm /etc/group; exit 3"}})
	run(e, "web", object{"Image": "busybox", "Hostname": "webhost", "Domainname": domain, "User": "1000:1000", "WorkingDir": "/tmp",
		"Env": list{"A=1", "B=two words"}, "Labels": object{"com.example/x": "y"}, "StopSignal": "SIGINT", "StopTimeout": 2,
		"ExposedPorts": object{"80/tcp": object{}, "53/udp": object{}},
		"Cmd":          list{"sh", "-c", "id; cat /etc/hostname; exit 0"},
		"Healthcheck":  object{"Test": list{"CMD-SHELL", "true"}, "Interval": 60e9, "Timeout": 5e9, "Retries": 2, "StartPeriod": 1e9},
		"HostConfig": object{"NetworkMode": "app", "RestartPolicy": object{"Name": "on-failure", "MaximumRetryCount": 3},
			"PortBindings": object{"80/tcp": list{object{"HostIp": "127.0.0.1", "HostPort": "18080"}}, "53/udp": list{object{"HostPort": ""}}},
			"Memory":       64 << 20, "MemoryReservation": 32 << 20, "NanoCpus": 5e8, "PidsLimit": 50, "CpuShares": 512,
			"LogConfig": object{"Type": "json-file", "Config": object{"max-size": "1m", "max-file": "2"}},
			"Ulimits":   list{object{"Name": "nofile", "Soft": 1024, "Hard": 2048}}},
		"NetworkingConfig": object{"EndpointsConfig": object{
			"app": object{"Aliases": list{"www"}, "IPAMConfig": object{"IPv4Address": "10.77.5.20"}, "DriverOpts": object{"com.example.opt": "v"}},
			"six": object{"IPAMConfig": object{"IPv6Address": "fd00:78::20"}}}}})
	run(e, "mounts", object{"Image": "busybox", "Volumes": object{"/anonymous": object{}},
		"Cmd": list{"sh", "-c", "date -d @0 >>/data/log; echo x >/anonymous/x; echo y >/nested/y; wc -l </data/log"},
		"HostConfig": object{
			"Binds":          list{"plain:/data", "/tmp:/hosttmp:ro", "labelled:/nested"},
			"Tmpfs":          object{"/scratch": "size=1m,mode=1777"},
			"Mounts":         list{object{"Type": "volume", "Source": "memory", "Target": "/memory", "VolumeOptions": object{"NoCopy": true}}, object{"Type": "tmpfs", "Target": "/t2", "TmpfsOptions": object{"SizeBytes": 1 << 20, "Mode": 0o700}}, object{"Type": "bind", "Source": "/tmp", "Target": "/b2", "ReadOnly": true}, object{"Type": "volume", "Target": "/anonymous2", "VolumeOptions": object{"Labels": object{"l": "m"}}}},
			"ReadonlyRootfs": false, "Init": true}})
	create(e, "donor", object{"Image": "busybox", "HostConfig": object{"Binds": list{"plain:/data"}}})
	run(e, "secured", object{"Image": "busybox", "Cmd": list{"true"}, "Tty": true, "OpenStdin": true,
		"HostConfig": object{"CapAdd": list{"NET_ADMIN"}, "CapDrop": list{"CHOWN"}, "SecurityOpt": list{"no-new-privileges", "seccomp=unconfined"},
			"ReadonlyRootfs": true, "Sysctls": object{"net.ipv4.ip_forward": "0"}, "ShmSize": 8 << 20, "OomScoreAdj": 100, "IpcMode": "shareable",
			"PidMode": "host", "UsernsMode": users, "UTSMode": "", "CgroupnsMode": "private", "GroupAdd": list{"2000"}, "ExtraHosts": list{"db:10.0.0.9"},
			"Dns": list{"192.0.2.53"}, "DnsSearch": list{"example.org"}, "DnsOptions": list{"ndots:2"},
			"Devices":   list{object{"PathOnHost": "/dev/null", "PathInContainer": "/dev/nil", "CgroupPermissions": "rwm"}},
			"LogConfig": object{"Type": "local", "Config": object{}}}})
	run(e, "host", object{"Image": "busybox", "Cmd": list{"true"}, "HostConfig": object{"NetworkMode": "host", "UsernsMode": users, "Privileged": true, "RestartPolicy": object{"Name": "on-failure"}}})
	run(e, "alone", object{"Image": "busybox", "Cmd": list{"true"}, "HostConfig": object{"NetworkMode": "none", "VolumesFrom": list{"donor:ro"}, "LogConfig": object{"Type": "none"}}})
	create(e, "joined", object{"Image": "busybox", "HostConfig": object{"NetworkMode": "container:web"}})
	create(e, "linked", object{"Image": "busybox", "HostConfig": object{"NetworkMode": "inner"}})
	run(e, "stopped", object{"Image": "busybox", "Cmd": list{"sleep", "1000"}, "StopSignal": "SIGKILL", "HostConfig": object{"RestartPolicy": object{"Name": "unless-stopped"}}})
	e.do(http.MethodPost, "/networks/inner/connect", object{"Container": "stopped", "EndpointConfig": object{"Aliases": list{"st"}}})
	e.do(http.MethodPost, "/containers/exited/rename?name=renamed", nil)
	if e.name == "dockerd" { // stated does not commit containers
		e.do(http.MethodPost, "/commit?container=renamed&repo=committed&tag=1&author=me&comment=c", object{"Cmd": list{"cat", "/file"}, "Labels": object{"from": "commit"}})
		create(e, "child", object{"Image": "committed:1"})
	}
}

func create(e *engine, name string, config object) {
	e.t.Helper()
	e.do(http.MethodPost, "/containers/create?name="+name, config)
}

// run creates and starts a container, and waits for its end; one that would not end by itself is stopped.
func run(e *engine, name string, config object) {
	e.t.Helper()
	create(e, name, config)
	e.do(http.MethodPost, "/containers/"+name+"/start", nil)
	if name == "stopped" {
		e.do(http.MethodPost, "/containers/"+name+"/stop", nil)
	}
	e.wait(name)
}

func importBusybox(e *engine) {
	e.t.Helper()
	f, err := os.Open(scratch.Busybox(e.t))
	if err != nil {
		e.t.Fatal(err)
	}
	defer f.Close()
	q := url.Values{"fromSrc": {"-"}, "repo": {"busybox"}, "tag": {"latest"}, "message": {"imported"}, "changes": {`CMD ["/bin/sh"]`, "ENV PATH=/bin", "LABEL kind=base"}}
	e.do(http.MethodPost, "/images/create?"+q.Encode(), f)
}

// twoLayers is an image archive of two layers, the second of which hides a file of the first.
func twoLayers(t *testing.T) *bytes.Reader {
	t.Helper()
	base, err := os.ReadFile(scratch.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	top := archive(t, map[string]string{"etc/two": "two\n", "etc/.wh.group": ""}, "etc/two", "etc/.wh.group")
	diff := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	config, err := json.Marshal(object{"architecture": "amd64", "os": "linux", "created": "2024-02-03T04:05:06.789Z", "author": "somebody",
		"config":  object{"Env": list{"PATH=/bin"}, "Cmd": list{"/bin/sh"}, "ExposedPorts": object{"8080/tcp": object{}}, "Volumes": object{"/var/log": object{}}, "Labels": object{"n": "2"}, "OnBuild": nil},
		"history": list{object{"created": "2024-02-03T04:05:06Z", "created_by": "base"}, object{"created": "2024-02-03T04:05:06Z", "created_by": "env", "empty_layer": true}, object{"created": "2024-02-03T04:05:06Z", "created_by": "top", "comment": "c"}},
		"rootfs":  object{"type": "layers", "diff_ids": list{diff(base), diff(top)}}, "x.unknown": object{"kept": true}})
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal(list{object{"Config": name, "RepoTags": list{"two:layers"}, "Layers": list{"a.tar", "b.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{name: string(config), "manifest.json": string(manifest), "a.tar": string(base), "b.tar": string(top)}
	return bytes.NewReader(archive(t, files, name, "manifest.json", "a.tar", "b.tar"))
}

func archive(t *testing.T, files map[string]string, order ...string) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, name := range order {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// members lists the names in an archive that stand for its contents: those that are digests.
func members(t *testing.T, data []byte) []string {
	t.Helper()
	var names []string
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(h.Name, "blobs/sha256/") && h.Typeflag == tar.TypeReg {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return names
}

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}
