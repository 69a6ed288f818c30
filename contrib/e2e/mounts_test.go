package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"stated.dev/stated/internal/testenv/hostile"
)

// TestSwappedSubpath starts containers while a directory of their volume is swapped for a link that leads out of it, as
// fast as that goes. None may see what is outside.
func TestSwappedSubpath(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	data := filepath.Join(h.Dir, "data", "volumes", "swap", "_data")
	h.Docker("run", "--rm", "-v", "swap:/v", "busybox", "sh", "-c", "mkdir -p /v/a/b && echo in >/v/a/b/file")
	outside := filepath.Join(h.Dir, "outside")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(outside, "b"), 0o755), os.WriteFile(filepath.Join(outside, "b", "file"), []byte("out"), 0o644),
		os.Symlink(outside, filepath.Join(data, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stop := hostile.Swap(t, data+"/a", data+"/link")
	in, refused := 0, 0
	for range 30 {
		r := h.run("run", "--rm", "--network", "none", "--mount", "type=volume,src=swap,dst=/t,volume-subpath=a/b", "busybox", "cat", "/t/file")
		switch out := strings.TrimSpace(r.out); {
		case r.code == 0 && out == "in":
			in++
		case out == "" && strings.Contains(r.err, "path"):
			refused++
		default:
			t.Errorf("code %d: %s, %s", r.code, r.out, r.err)
		}
	}
	stop()
	t.Logf("%d containers saw the volume, %d were refused", in, refused)
	noPins(t, h)
}

// noPins wants nothing held from starts.
func noPins(t *testing.T, h host) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+h.Dir+"/") && strings.Contains(line, "/pins/") {
			t.Errorf("left mounted: %s", line)
		}
	}
}

// TestMountsSurvive: volumes' subpaths and images stay as they are while the daemon is killed and started, and come
// back with a restart of the container and after what a reboot leaves.
func TestMountsSurvive(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	h.Docker("run", "--rm", "-v", "vol:/v", "busybox", "sh", "-c", "mkdir /v/a && echo part >/v/a/file")
	h.Docker("tag", "busybox", "other:1")
	args := []string{"--restart", "always", "--mount", "type=volume,src=vol,dst=/part,volume-subpath=a", "--mount", "type=image,src=other:1,dst=/image",
		"--mount", "type=image,src=other:1,dst=/again,image-subpath=etc"}
	h.Docker(append(append([]string{"run", "-d", "--name", "box"}, args...), "busybox", "sleep", "1000")...)
	check := func() {
		t.Helper()
		h.want("part\npasswd\nroot:x:0:0:root:/root:/bin/sh", "exec", "box", "sh", "-c", "cat /part/file; ls /again | grep pass; head -1 /image/etc/passwd")
		h.fails("Read-only file system", "exec", "box", "touch", "/image/x")
		noPins(t, h)
	}
	check()
	h.Stop(syscall.SIGKILL)
	h.Start()
	check()
	h.Docker("restart", "-t", "0", "box")
	check()
	h.Docker("rm", "-f", "box")
	if left, err := filepath.Glob(filepath.Join(h.Dir, "data", "image", "overlay2", "layerdb", "mounts", "*")); err != nil || len(left) > 0 {
		t.Errorf("left layers: %v, %v", left, err)
	}
}

// The transcripts about mounts for TestCompare.

const volumeSubpaths = `
docker volume create sub
! docker run --rm -v sub:/v busybox sh -c 'mkdir -p /v/a/b; echo in >/v/a/file; mkfifo /v/fifo; cd /v; ln -s a rel; ln -s /etc abs; ln -s .. up; ln -s ../nothing out; ln -s /a absa; ln -s loop loop'
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a busybox sh -c 'ls /t; mount | grep -c " /t "; echo new >/t/new'
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a/b busybox ls -a /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a/new busybox cat /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a/,readonly busybox touch /t/x
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=. busybox ls /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=rel busybox ls /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=rel/../a//b busybox ls -a /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=fifo busybox ls -l /t | cut -c1
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=abs busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=up busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=up/_data/a busybox ls /t
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=out busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=absa busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=loop busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=nope busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a/file/x busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=.. busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=a/../../x busybox true
docker run --rm --mount type=volume,src=sub,dst=/t,volume-subpath=/a busybox true
docker run --rm --mount type=volume,dst=/t,volume-subpath=a busybox true
docker run --rm --mount type=volume,src=fresh,dst=/bin/x,volume-subpath=a busybox true
docker run -d --name sp --mount type=volume,src=sub,dst=/t,volume-subpath=a --mount type=volume,src=sub,dst=/t/b,volume-subpath=a/b,readonly busybox sleep 1000
docker inspect -f '{{range .Mounts}}{{json .}}{{println}}{{end}}' sp | sort
docker inspect -f '{{json .HostConfig.Mounts}} {{json .State.Error}}' sp
grep -ho '"MountPoints":.*"SecretRef' $D/{root,data}/containers/*/config.v2.json 2>/dev/null
docker restart -t 0 sp
docker run --rm --volumes-from sp:ro busybox sh -c 'ls /t; touch /t/x; touch /t/b/x'
docker run --name bad --mount type=volume,src=sub,dst=/t,volume-subpath=gone busybox true; docker inspect -f '{{json .State.Error}} {{.State.ExitCode}} {{.State.Status}}' bad
! docker run --rm -v sub:/v busybox mkdir /v/gone
docker start -a bad
docker stop -t 0 sp
docker volume rm sub
docker rm sp bad
docker volume rm sub
docker events --since 1m --until $(date +%s.%N) --filter volume=sub --filter event=mount --format '{{.Action}} {{.Actor.Attributes.destination}} {{index .Actor.Attributes "read/write"}}' | sort | uniq -c
`

const imageMounts = `
! mkdir -p $D/i/sub/deep && cd $D/i && echo in >sub/deep/file && ln -s /etc sub/abs && ln -s sub rel && ln -s .. up
! tar -C $D/i -c . | docker import - tree:1
docker run --rm --mount type=image,src=tree:1,dst=/t busybox sh -c 'ls -A /t; cat /t/sub/deep/file; touch /t/x 2>&1; mount | grep -c " /t type overlay (ro,"'
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=sub/deep busybox sh -c 'ls /t; touch /t/x 2>&1'
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=sub/deep/file busybox cat /t
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=rel busybox ls /t
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=sub/abs busybox true
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=up busybox true
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=nope busybox true
docker run --rm --mount type=image,src=tree:1,dst=/t,image-subpath=../x busybox true
docker run --rm --mount type=image,src=tree:1,dst=/etc/resolv.conf,image-subpath=sub/deep/file busybox cat /etc/resolv.conf
docker run --rm --mount type=image,src=tree:1,dst=/t --mount type=volume,src=over,dst=/t/sub busybox ls -A /t /t/sub
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"image","Source":"nope","Target":"/t"}]}}'
docker create --name no --mount type=image,src=NOPE,dst=/t busybox true
docker create --name no --mount type=image,dst=/t busybox true
docker create --name no --mount type=image,src=tree:1,dst=/t,bind-propagation=shared busybox true
docker ps -aq
docker run -d --name im --mount type=image,src=tree:1,dst=/t --mount type=image,src=busybox,dst=/u,image-subpath=bin busybox sleep 1000
docker inspect -f '{{range .Mounts}}{{json .}}{{println}}{{end}}' im | sort
docker inspect -f '{{json .HostConfig.Mounts}}' im
grep -ho '"MountPoints":.*"SecretRef' $D/{root,data}/containers/*/config.v2.json 2>/dev/null
ls $D/*/image/overlay2/layerdb/mounts/
docker ps -a --filter ancestor=tree:1 -q
docker ps -a --filter volume=tree:1 --format '{{.Names}},{{.Mounts}}' | tr , '\n' | sort
docker tag tree:1 tree:2
docker rmi tree:2
docker rmi tree:1
docker rmi $(docker images -q tree)
docker image prune -af
docker system df -v --format '{{range .Images}}{{.Repository}} {{.Containers}};{{end}}'
docker restart -t 0 im
docker run --rm --volumes-from im busybox ls -A /t
docker stop -t 0 im
docker rmi tree:1
docker rmi $(docker images -q tree)
grep -ho '"MountPoints":.*"SecretRef' $D/{root,data}/containers/*/config.v2.json 2>/dev/null
docker rmi -f tree:1
docker images -a --format '{{.Repository}}' | sort
docker start im
docker run --rm --volumes-from im busybox ls -A /u | head -3
docker rm -f im
ls $D/*/image/overlay2/layerdb/mounts/
docker images -aq | wc -l
ls -d $D/{root,data}/image/overlay2/layerdb/sha256/* 2>/dev/null | wc -l
`

const mountRules = `
! docker volume create vv
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":["vv:/t:ro,rro"]}}'
for b in '/etc:/t:ro,rw' '/etc:/t:z,Z' '/etc:/t:shared,slave' '/etc:/t:nocopy' '/etc:/t:foo' '/etc:/t:' 'vv:/t:rshared' 'vv:/t:nocopy,z' 'vv:/t:cached' '/etc:/t:/u:ro' '/t:ro' '/' 'vv:/' 'vv:t' '/etc:t' './x:/t' 'x:/t' ':/t' '' '/etc:/t/../..' 'vv::ro'; do echo "$b"; api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":["'"$b"'"]}}'; done
for b in '"vv:/t","/etc:/t"' '"vv:/t","xx:/t/"'; do echo "$b"; api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":['"$b"']}}'; done
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":["vv:/t"],"Tmpfs":{"/t":""}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":["vv:/t"],"Mounts":[{"Type":"tmpfs","Target":"/t/"}]}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Tmpfs":{"/":""}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Tmpfs":{"t":""}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Tmpfs":{"/t":"nope"}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","Volumes":{"/":{}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","Volumes":{"t":{}}}'
for f in '' ':ro' 'nope' 'nope:ro,z' 'vf:foo' 'vf:shared' 'vf:nocopy' 'vf:ro:rw'; do echo "$f"; api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"VolumesFrom":["'"$f"'"]}}'; done
for m in '{"Target":"/t"}' '{"Type":"nope","Target":"/t"}' '{"Type":"npipe","Source":"x","Target":"/t"}' '{"Type":"cluster","Source":"x","Target":"/t"}' '{"Type":"bind","Source":"/etc"}' '{"Type":"bind","Target":"/t"}' '{"Type":"bind","Source":"etc","Target":"/t"}' '{"Type":"bind","Source":"/etc","Target":"t"}' '{"Type":"bind","Source":"/etc","Target":"/"}' '{"Type":"bind","Source":"/nope","Target":"/t"}' '{"Type":"bind","Source":"/etc/passwd/x","Target":"/t"}' '{"Type":"bind","Source":"/etc","Target":"/t","BindOptions":{"Propagation":"odd"}}' '{"Type":"bind","Source":"/etc","Target":"/t","VolumeOptions":{}}' '{"Type":"bind","Source":"/etc","Target":"/t","TmpfsOptions":{}}' '{"Type":"bind","Source":"/etc","Target":"/t","ImageOptions":{}}' '{"Type":"volume","Target":"/t","ReadOnly":true}' '{"Type":"volume","Target":"/t","BindOptions":{}}' '{"Type":"volume","Target":"/t","ImageOptions":{}}' '{"Type":"volume","Target":"/t","VolumeOptions":{"Subpath":"a"}}' '{"Type":"volume","Source":"vv","Target":"/t","VolumeOptions":{"Subpath":"/a"}}' '{"Type":"volume","Source":"v$","Target":"/t"}' '{"Type":"volume","Source":"vv","Target":"/t","VolumeOptions":{"DriverConfig":{"Options":{"foo":"bar"}}}}' '{"Type":"volume","Source":"vw","Target":"/t","VolumeOptions":{"DriverConfig":{"Options":{"foo":"bar"}}}}' '{"Type":"tmpfs","Source":"x","Target":"/t"}' '{"Type":"tmpfs","Target":"/t","BindOptions":{}}' '{"Type":"tmpfs","Target":"/t","VolumeOptions":{}}' '{"Type":"tmpfs","Target":"/t","ImageOptions":{}}' '{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["uid","1"]]}}' '{"Type":"tmpfs","Target":"/t","TmpfsOptions":{"Options":[["exec","1","2"]]}}' '{"Type":"image","Target":"/t"}' '{"Type":"image","Source":"busybox","Target":"/t","BindOptions":{}}' '{"Type":"image","Source":"busybox","Target":"/t","VolumeOptions":{}}' '{"Type":"image","Source":"busybox","Target":"/t","ImageOptions":{"Subpath":"../x"}}'; do echo "$m"; api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Mounts":['"$m"']}}'; done
for o in '"ReadOnlyNonRecursive":true' '"ReadOnlyForceRecursive":true'; do docker rm -f ro >/dev/null 2>&1; api POST '/containers/create?name=ro' -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"bind","Source":"/etc","Target":"/t","BindOptions":{'$o'}}]}}'; api POST /containers/ro/start; done
docker rm -f ro >/dev/null; api POST '/containers/create?name=ro' -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"bind","Source":"/etc","Target":"/t","ReadOnly":true,"BindOptions":{"ReadOnlyNonRecursive":true,"ReadOnlyForceRecursive":true}}]}}'; api POST /containers/ro/start
docker run --rm --mount type=bind,src=/etc,dst=/t,readonly,bind-propagation=rshared,bind-recursive=readonly busybox true
docker run --rm --mount type=bind,src=/etc,dst=/t,readonly,bind-recursive=readonly busybox true
docker run --rm --mount type=bind,src=/etc,dst=/t,readonly,bind-recursive=writable busybox touch /t/x
docker run --rm --mount type=bind,src=/etc,dst=/t,bind-nonrecursive=true busybox true
docker run --rm -v vv:/bin/sh busybox true
docker run --rm -v /etc:/bin/sh busybox true
docker run --rm -v /etc/passwd:/bin busybox true
docker run --rm -v /etc/passwd/x:/t busybox true
docker run --rm -v $D/new:/a/b -v vv:/a --tmpfs /a/b/c --mount type=tmpfs,dst=/d,tmpfs-mode=1770,tmpfs-size=1m busybox sh -c 'mount | grep -e " /a" -e " /d " | cut -d" " -f3'
docker run --rm --mount type=tmpfs,dst=/t,readonly busybox touch /t/x
docker run --name p1 -v vv:/a -v old:/b -v old2:/c busybox true
docker run --name p2 --volumes-from p1 -v new:/b --mount type=volume,src=long,dst=/c busybox true; docker inspect -f '{{range .Mounts}}{{println .Destination .Name .Mode .RW}}{{end}}' p2 | sort
docker volume rm old2
docker rm p2 p1 && docker volume rm old old2 new long
`
