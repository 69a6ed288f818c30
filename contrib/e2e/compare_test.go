package e2e

import "testing"

// TestCompare runs the same commands against stated and dockerd. What they print, and how they end, must be the same.
func TestCompare(t *testing.T) {
	t.Parallel()
	oracle := startOracle(t)
	for name, lines := range transcripts {
		t.Run(name, func(t *testing.T) {
			h := startedHost(t)
			_, _ = oracle.script(t.Context(), `docker rm -fv $(docker ps -aq); docker volume prune -af; docker network prune -f; docker rmi -f $(docker images -q)`) // what the last one left
			oracle.importBusybox(t)
			compare(t, [2]side{h.side(), oracle}, lines)
		})
	}
}

var transcripts = map[string]string{
	"volume subpaths": volumeSubpaths,
	"image mounts":    imageMounts,
	"mount rules":     mountRules,

	"names and states": `
docker run -d --name aa busybox sleep 1000
docker run -d --name aa busybox true
docker create --name bb --label x=y busybox sh -c 'exit 4'
docker ps --format '{{.Names}} {{.Status}} {{.Image}} {{.Command}} {{.Ports}} {{.State}} {{.Mounts}} {{.Networks}}'
docker ps -a --format '{{.Names}} {{.State}} {{.Labels}}'
docker start nope
docker start bb && docker wait bb
docker start aa
docker ps -a --format '{{.Names}} {{.Status}}'
docker rm aa
docker rename aa bb
docker rename aa cc
docker rename cc cc
docker rename nope cc
docker rename cc @
docker pause cc && docker ps --format '{{.Names}} {{.Status}} {{.State}}'
docker pause cc
docker exec cc true
docker attach cc
docker rm cc
docker start cc
docker unpause cc
docker unpause cc
docker unpause bb
docker pause bb
docker kill bb
docker kill -s NOPE cc
docker kill -s USR1 cc
docker stop -t 0 cc
docker stop cc
docker kill cc
docker ps -a --filter status=exited --format '{{.Names}} {{.Status}}'
docker restart -t 0 cc
docker restart nope
docker update --memory 64m --memory-swap 128m --restart always cc
docker update --memory 1k cc
docker update --restart nope cc
docker update --restart on-failure:3 --cpus 0.5 cc && docker inspect -f '{{json .HostConfig.RestartPolicy}} {{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}' cc
docker exec cc echo hi
docker exec cc sh -c 'exit 7'
docker exec cc nothing-there
docker exec bb true
docker exec nope true
docker exec -u nope cc id
docker exec -u 1000 -w /tmp -e A=b cc sh -c 'id -u; pwd; echo $A; echo $PATH'
docker exec -w /not/there cc pwd
echo input | docker exec -i cc cat
docker exec -d cc sleep 50
docker exec --privileged cc grep CapEff /proc/self/status
docker top cc | awk '{print $8, $9}'
docker top cc -eo pid,comm | awk '{print $2}'
docker top cc -o comm
docker top bb
docker top nope
docker diff cc
docker port cc
docker port cc 80
docker logs nope
docker logs bb
docker inspect nope
docker wait nope
docker attach bb
docker attach nope
docker rm -f nope
docker rm -f cc bb
docker ps -a --filter nope=1
docker ps -aq
docker container prune -f
docker container prune -f --filter nope=1
docker container prune -f --filter until=x
docker create --name dd busybox
docker create --restart on-failure:-1 busybox
docker create --restart no:3 busybox
docker create --rm --restart always busybox
docker create -m 10m --memory-swap 5m busybox
docker create --cpus 1000 busybox
docker create --cpuset-cpus 99 busybox
docker create --cpuset-cpus x busybox
docker create --pids-limit -5 busybox
docker create --oom-score-adj 2000 busybox
docker create --shm-size -1 busybox
docker create --ulimit nope=1 busybox
docker create --stop-signal NOPE busybox
docker create --hostname -x busybox
docker create --mac-address x busybox
docker create -w rel busybox
docker create --add-host x busybox
docker create -p 80:80:80:80 busybox
docker create --ip 1.2.3.4 busybox
docker create --network host -p 80:80 busybox
docker create --network container:nope busybox
docker create --network container:dd -p 80:80 busybox
docker create --network container:dd --hostname x busybox
docker create --pid container:nope busybox
docker create --pid nope busybox
docker create --ipc nope busybox
docker create --uts nope busybox
docker create --cgroupns nope busybox
docker create --userns nope busybox
docker create --health-interval 1us --health-cmd x busybox
docker create --sysctl nope busybox
docker create --device /dev/null:/x:q busybox
docker create --device-cgroup-rule x busybox
docker create --blkio-weight 5 busybox
docker create --cap-add NOPE busybox
docker create --security-opt seccomp=/not/there busybox
docker create --security-opt label=x busybox
docker create --gpus all busybox
docker create ''
docker create --platform linux/arm64 --pull never busybox
docker run --volumes-from nope busybox
docker run --volumes-from dd:q busybox
docker run --rm --network container:dd busybox
docker run --rm --pid container:dd busybox
docker run --rm --ipc container:dd busybox
`,
	"volumes": `
docker volume create
docker volume create aa
docker volume create aa
docker volume create --label x=y --opt type=tmpfs --opt device=tmpfs bb
docker volume create --opt nope=1 cc
docker volume create --driver nope cc
docker volume create /a
docker volume create x
docker volume ls --format '{{.Driver}} {{.Labels}} {{.Scope}}' | sort
docker volume ls --filter label=x=y --format '{{.Name}}'
docker volume ls --filter name=aa -q | grep -v '^ID$' | grep -vE '^[0-9a-f]{64}$'
docker volume ls --filter nope=1
docker volume inspect nope
docker volume inspect -f '{{json .Options}} {{json .Labels}} {{.Driver}} {{.Scope}}' bb aa
docker run --rm -v aa:/data busybox sh -c 'echo hi > /data/f'
docker run -d --name uu -v aa:/data:ro --mount type=volume,src=v1,dst=/v1 --mount type=volume,dst=/anon -v /anon2 -v $D/new:/bind --tmpfs /t busybox sleep 1000
docker inspect -f '{{range .Mounts}}{{.Type}} {{.Destination}} {{.Driver}} {{.Mode}} {{.RW}} {{.Propagation}}{{"\n"}}{{end}}' uu | sort
docker inspect -f '{{len .HostConfig.Binds}} {{json .HostConfig.Mounts}} {{json .HostConfig.Tmpfs}}' uu
docker volume ls --filter dangling=true -q | grep -v '.\{64\}'
docker volume rm aa
docker volume rm nope
docker volume rm -f nope
docker volume rm x
docker run --rm --volumes-from uu busybox sh -c 'mount | grep -c -e " /data" -e " /v1" -e " /anon" -e " /bind"; cat /data/f'
docker run --rm --volumes-from uu:ro busybox sh -c 'touch /v1/x /bind/x'
docker ps -a --filter volume=aa --format '{{.Names}}'
docker ps -a --filter volume=/data --format '{{.Names}}'
docker run --rm -v nope/x:/y busybox true
docker run --rm -v aa:y busybox true
docker run --rm -v aa:/y:zz busybox true
docker run --rm -v aa:/ busybox true
docker run --rm -v /:/x:ro,z,Z busybox true
docker run --rm -v @:/y busybox true
docker run --rm --mount type=nope,dst=/x busybox true
docker run --rm --mount type=bind,dst=/x busybox true
docker run --rm --mount type=volume busybox true
docker run --rm --mount type=tmpfs,src=x,dst=/x busybox true
docker run --rm --mount type=tmpfs,dst=/x --tmpfs /x busybox true
docker run --rm --mount type=volume,src=aa,dst=/x,volume-driver=nope --pull never busybox true
docker run --rm --mount type=volume,src=opt,dst=/x,volume-opt=type=tmpfs,volume-opt=device=tmpfs busybox sh -c 'mount | grep -c " /x type tmpfs"'
docker run --rm --tmpfs /x:size=zz busybox true
docker run --rm -v aa:/etc/hosts busybox true
docker import -c 'VOLUME /root' -c 'VOLUME /tmp' -c 'ENV PATH=/bin' -c 'USER 1000' /var/cache/stated-test/busybox/busybox.tar withvol >/dev/null
docker run --name ww withvol sh -c 'stat -c "%a %u %n" /root /tmp; touch /tmp/x && ls /tmp'
docker run --rm -v cu:/bin:nocopy --entrypoint /bin/ls withvol /bin | wc -l
docker run --rm -v cv:/mnt/bin busybox true; docker run --rm -v cw:/bin busybox ls /bin | wc -l
docker run --rm -v cw:/x busybox sh -c 'ls /x | wc -l; stat -c "%a %u" /x/busybox'
docker rm -f ww uu
docker rm -fv ww uu
docker volume ls -q | grep -c '.\{64\}'
docker volume prune -f | grep -v '^[0-9a-f]\{64\}' | sort
docker volume prune -af | grep -v '^[0-9a-f]\{64\}' | sort
docker volume ls
docker volume prune -f --filter nope=1
docker volume prune -f --filter label=x
`,
	"networks": `
docker network ls --format '{{.Name}} {{.Driver}} {{.Scope}} {{.IPv4}} {{.IPv6}} {{.Internal}}'
docker network create a
docker network create a
docker network create --driver nope b
docker network create bridge
docker network create host
docker network create --subnet 10.77.0.0/24 --gateway 10.77.0.1 --ip-range 10.77.0.128/25 --aux-address x=10.77.0.5 --label l=1 --opt com.docker.network.bridge.name=e2eb --internal b
docker network inspect -f '{{json .IPAM}} {{.Internal}} {{json .Labels}} {{json .Options}} {{.Scope}} {{.EnableIPv4}} {{.EnableIPv6}}' b
docker network create --subnet 10.77.0.0/16 c
docker network create --subnet x c
docker network create --subnet 10.79.0.0/24 --gateway 10.80.0.1 c
docker network create --opt com.docker.network.bridge.enable_icc=maybe c
docker network create --ipam-driver nope c
docker network create ''
docker network ls --filter driver=bridge --format '{{.Name}}'
docker network ls --filter type=custom --format '{{.Name}}'
docker network ls --filter nope=1
docker network ls --filter dangling=true -q | wc -l
docker network inspect nope
docker network rm nope
docker network rm bridge
docker network rm host
docker run -d --name c1 --network a --network-alias al --hostname hh busybox sleep 1000
docker run -d --name c2 --network a --mac-address 02:42:ac:11:00:99 busybox sleep 1000
docker run --rm --network a busybox sh -c 'for n in c1 al hh; do ping -c1 -W2 $n >/dev/null && echo $n; done; nslookup c1 | grep -c Name'
docker exec c2 cat /sys/class/net/eth0/address
docker run --rm --network a busybox sh -c 'nslookup nope | tail -2; grep ^[a-z] /etc/resolv.conf'
docker inspect -f '{{json .NetworkSettings.Networks}}' c1
docker inspect -f '{{json .NetworkSettings.Ports}}' c1
docker network rm a 2>&1 | tr '(,)' '\n' | sed 's,^ *,,' | sort
docker network inspect -f '{{range .Containers}}{{.Name}} {{.IPv4Address}}{{println}}{{end}}' a | sort
docker network connect b c1
docker network connect b c1
docker network connect nope c1
docker network connect b nope
docker network connect host c1
docker network connect --ip 10.77.0.200 --alias zz b c2
docker exec c2 sh -c 'ip -o -4 addr | wc -l'
docker run --rm --network b busybox ping -c1 -W2 zz > /dev/null; echo $?
docker network connect --ip 10.99.0.200 b c2
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.Aliases}} {{$v.DNSNames}} {{json $v.IPAMConfig}} {{end}}' c2
docker network disconnect a c2
docker network disconnect a c2
docker network disconnect a nope
docker network disconnect nope c2
docker exec c2 ip -o -4 addr | wc -l
docker network rm b 2>&1 | tr '(,)' '\n' | sed 's,^ *,,' | sort
docker stop -t 0 c2
docker network connect a c2
docker network connect a c2
docker network disconnect a c2
docker inspect -f '{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{end}}' c2
docker start c2 && docker exec c2 ip -o -4 addr | wc -l
docker run -d --name c3 --network none busybox sleep 100
docker network connect a c3
docker run -d --name c4 --network host busybox sleep 100
docker network connect a c4
docker network disconnect host c4
docker run --rm --network container:c1 busybox sh -c 'hostname; cut -f2- /etc/hosts'
docker run -d --name c5 --network container:c1 busybox sleep 100
docker network connect a c5
docker inspect -f '{{json .NetworkSettings}}' c5
docker run --rm --network a --ip 10.77.0.9 busybox true
docker run --rm --network b --ip 10.77.0.9 busybox true
docker run --rm --network b --ip 10.78.0.9 busybox true
docker run --rm --network b --ip 10.77.0.200 busybox true
docker run --rm --network bridge --network-alias x busybox true
docker run -d --name p1 -p 127.0.0.1:18080:80 -p 18081:81/udp -p 19000-19002:90-92 busybox sleep 100
docker port p1
docker port p1 80
docker port p1 81/udp
docker port p1 99
docker ps --filter name=p1 --format '{{.Ports}}'
docker run -d --name p2 -p 127.0.0.1:18080:80 busybox sleep 100
docker run -d --name p3 -p 18080:80 busybox sleep 100
docker ps -a --filter name=p2 --format '{{.Status}}'
docker inspect -f '{{.State.Error}} {{.State.ExitCode}}' p2
docker ps -a --filter publish=80 --format '{{.Names}}'
docker ps -a --filter publish=81/udp --format '{{.Names}}'
docker ps -a --filter publish=x
docker ps -a --filter network=nope --format '{{.Names}}'
docker run -d --name p4 -P --expose 80 --expose 81/udp busybox sleep 100
docker port p4 | sed 's/:[0-9]*$//'
docker ps --filter expose=80-90 --format '{{.Names}}'
docker rm -f c1 c2 c3 c4 c5 p1 p2 p3 p4
docker network rm a b
docker network create a1
docker network prune -f
docker network ls -q | wc -l
docker network create --ipv6 --subnet fd00:77::/64 v6
docker run --rm --network v6 busybox sh -c "ip -6 -o addr show eth0 | grep -c 'fd00:77::2/64'; cut -f1 /etc/hosts | tail -1"
docker network create --config-only conf; docker network create --config-from conf real; docker network rm real conf
docker run --rm --network none busybox ip -o link show eth0
docker run --rm --network v6 --network bridge busybox ip -o link | wc -l
docker network create --ipv4=false --subnet 10.3.0.0/24 q
docker network create -o com.docker.network.bridge.host_binding_ipv4=1.2.3.x q
docker network create -o com.docker.network.driver.mtu=x q
`,
	"logs and health": `
! docker run --name l0 busybox sh -c 'for i in 1 2 3; do echo out $i; echo err $i >&2; usleep 20000; done'
docker logs l0 2>/dev/null
docker logs l0 2>&1 >/dev/null
docker logs -n 0 l0
docker logs -t l0 2>/dev/null
docker logs --since 1h l0 2>/dev/null
docker logs --since 2099-01-01 l0
docker logs --until 2000-01-01 l0
docker logs --since x l0
docker logs -n x l0 | wc -l
docker logs -f l0 2>/dev/null
docker run --name ld --label a=b -e C=d --log-opt labels=a --log-opt env=C busybox echo hi
docker logs --details ld
docker run --name ln --log-driver none busybox echo hi
docker logs ln
docker run --name ll --log-driver local busybox echo hi
docker logs ll
docker run --rm --log-opt max-file=2 busybox true
docker run --name lr --log-opt max-size=1k --log-opt max-file=3 busybox sh -c 'for i in $(seq 100); do echo line $i; done' | tail -1
docker logs lr | tail -1
docker run -t --name lt busybox sh -c 'echo a; echo b >&2'
docker logs lt 2>/dev/null | od -c
docker run --name lp busybox printf 'no newline'
docker logs lp
api GET /containers/l0/logs
api GET '/containers/l0/logs?stdout=1&tail=1' -o /dev/null
api GET '/containers/nope/logs?stdout=1'
docker run -d --name h1 --health-cmd 'echo probed' --health-interval 100ms --health-start-period 1ms busybox sleep 100
docker run -d --name h4 --health-cmd 'echo bad; exit 3' --health-interval 100ms --health-retries 2 busybox sleep 100
for i in $(seq 1000); do docker inspect -f '{{.State.Health.Status}}' h1 | grep -qx healthy && break; done; docker inspect -f '{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}' h1
docker ps --filter health=healthy --format '{{.Names}} {{.Status}}'
for i in $(seq 1000); do docker inspect -f '{{.State.Health.Status}}' h4 | grep -qx unhealthy && break; done; docker ps --filter name=h4 --format '{{.Status}}'
docker inspect -f '{{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}' h4
docker events --since 1m --until $(date +%s.%N) --filter container=h1 --filter container=h4 --filter event=health_status --format '{{.Action}}'
docker events --since 1m --until $(date +%s.%N) --filter container=h1 --format '{{.Action}}' | sort -u
docker ps --filter health=nope
docker run -d --name h2 --health-cmd 'sleep 10' --health-interval 100ms --health-timeout 200ms --health-retries 1 busybox sleep 100
for i in $(seq 1000); do docker inspect -f '{{.State.Health.Status}}' h2 | grep -qx unhealthy && break; done; docker inspect -f '{{.State.Health.Status}} {{(index .State.Health.Log 0).ExitCode}} {{(index .State.Health.Log 0).Output}}' h2
docker run -d --name h3 --no-healthcheck busybox sleep 100; docker inspect -f '{{json .State.Health}} {{json .Config.Healthcheck}}' h3
docker stop -t 0 h1; docker inspect -f '{{.State.Health.Status}}' h1; docker ps -a --filter name=h1 --format '{{.Status}}'
`,
	"exits and restarts": `
docker run --name oom --memory 8m --memory-swap 8m busybox sh -c 'tail /dev/zero'
docker inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}} {{.State.Error}}' oom
docker events --since 1m --until $(date +%s.%N) --filter container=oom --format '{{.Type}} {{.Action}}' | uniq
docker run -d --name r1 --restart on-failure:2 busybox sh -c 'exit 5'
docker wait r1
for i in $(seq 50); do docker inspect -f '{{.State.Status}}' r1 | grep -qx exited && break; done; docker inspect -f '{{.RestartCount}} {{.State.ExitCode}} {{.State.Status}} {{.State.Running}}' r1
docker run -d --name r2 --restart always busybox sh -c 'test -e /x && exec sleep 1000; touch /x'
for i in $(seq 50); do docker inspect -f '{{.RestartCount}}' r2 | grep -qx 1 && break; done; for i in $(seq 50); do docker exec r2 echo up 2>/dev/null && break; done
docker kill r2; docker inspect -f '{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}' r2
docker run -d --name r3 --restart always busybox nothing-there
docker ps -a --filter name=r3 --format '{{.Status}}'
docker run -d --name r4 --restart always busybox false; for i in $(seq 50); do docker inspect -f '{{.State.Status}}' r4 | grep -qx restarting && break; done; echo
docker stop r4; docker inspect -f '{{.State.Status}} {{.State.Running}}' r4
docker rm r4
docker run -d --name s1 --stop-signal USR1 --stop-timeout 20 busybox sh -c 'trap "exit 9" USR1; while :; do sleep 1 & wait; done'
docker stop s1; docker inspect -f '{{.State.ExitCode}} {{json .Config.StopTimeout}} {{.Config.StopSignal}}' s1
docker run -d --name s2 busybox sleep 1000
docker stop -t 0 s2; docker inspect -f '{{.State.ExitCode}}' s2
docker events --since 1m --until $(date +%s.%N) --filter container=s2 --format '{{.Action}} {{index .Actor.Attributes "signal"}} {{index .Actor.Attributes "exitCode"}}' | sort
docker run -d --rm --name s3 busybox sleep 1000; docker restart -t 0 s3; docker ps --filter name=s3 --format '{{.Names}}'; docker stop -t 0 s3
docker events --since 1m --until $(date +%s.%N) --filter container=s3 --format '{{.Type}} {{.Action}}' | grep -v destroy | sort
docker events --since 1m --until $(date +%s.%N) --filter type=network --filter event=nope
docker events --since 1m --until $(date +%s.%N) --filter nope=1 | grep -c create | sed 's/.*/some/'
docker events --since x
docker run --name e1 -v evol:/x --network none --label k=v busybox true; docker events --since 1m --until $(date +%s.%N) --filter volume=evol --filter event=create --filter event=mount --format '{{.Action}} {{json .Actor.Attributes}}'
docker rm e1; docker volume rm evol; docker events --since 1m --until $(date +%s.%N) --filter volume=evol --format '{{.Action}}'
docker events --since 1m --until $(date +%s.%N) --filter label=k=v --format '{{.Action}} {{json .Actor.Attributes}}'
docker stats --no-stream --format '{{.Name}} {{.PIDs}}' s1
docker stats --no-stream nope
docker run -d --name st busybox sleep 1000; docker stats --no-stream --format '{{.Name}} {{.PIDs}}' st
docker rm -f $(docker ps -aq) | wc -l
`,
	"images": `
docker images --format '{{.Repository}}:{{.Tag}}'
docker tag busybox a:1
docker tag nope b
docker tag busybox B
docker rmi nope
docker run -d --name uu busybox sleep 100
docker rmi busybox
docker rmi a:1
docker rmi busybox
docker rmi -f busybox
docker history --format '{{.CreatedBy}} {{.Size}} {{.Comment}}' busybox
docker image inspect -f '{{json .Config.Cmd}} {{.Os}} {{.Architecture}} {{json .RepoTags}} {{json .RootFS.Type}} {{.GraphDriver.Name}}' busybox
docker save busybox -o $D/x.tar && docker load -i $D/x.tar
docker save nope
docker image prune -f
docker image ls --filter reference='busy*' --format '{{.Repository}}'
docker image ls --filter nope=1
docker ps --filter ancestor=busybox --format '{{.Names}}'
docker rm -f uu
docker system df
docker version --format '{{.Server.APIVersion}} {{.Server.Os}} {{.Server.Arch}} {{.Server.MinAPIVersion}}'
docker info --format '{{.Driver}} {{.LoggingDriver}} {{.CgroupDriver}} {{.CgroupVersion}} {{.OSType}} {{.Images}} {{.Swarm.LocalNodeState}} {{.DefaultRuntime}} {{json .SecurityOptions}}'
docker import /not/there
`,
	"bad requests": `
api POST /containers/create -H 'Content-Type: application/json' -d '{'
api POST /containers/create -H 'Content-Type: application/json' -d ''
api POST /containers/create -H 'Content-Type: text/plain' -d '{}'
api POST /containers/create -H 'Content-Type: application/json' -d '{}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"nope"}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"x"}]}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"volume","Target":"x"}]}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"Binds":["aa:/x","bb:/x"]}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"RestartPolicy":{"Name":"nope"}}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","HostConfig":{"NetworkMode":"container:"}}'
api POST /containers/create -H 'Content-Type: application/json' -d '{"Image":"busybox","Env":["=x"]}'
api POST '/containers/create?name=ok' -H 'Content-Type: application/json' -d '{"Image":"busybox","Cmd":["true"]} trailing'
api POST /containers/nope/start
api POST /containers/ok/start -H 'Content-Type: application/json' -d '{}'
api POST /containers/ok/resize
api POST '/containers/ok/resize?h=x&w=1'
api POST '/containers/ok/kill?signal=x'
api POST /containers/ok/rename
api POST '/containers/ok/wait?condition=x'
api POST /containers/ok/exec -H 'Content-Type: application/json' -d '{}'
api POST /exec/nope/start -H 'Content-Type: application/json' -d '{}'
api GET /exec/nope/json
api GET '/containers/json?filters=x'
api GET '/containers/json?filters={"status":["x"]}'
api GET /containers/ok/top
api GET /nope
api DELETE /nope
api PUT /containers/ok/json
api POST /containers/ok/update -H 'Content-Type: application/json' -d '{'
api POST /networks/create -H 'Content-Type: application/json' -d '{}'
api POST /networks/create -H 'Content-Type: application/json' -d '{'
api POST /networks/bridge/connect -H 'Content-Type: application/json' -d '{}'
api POST /volumes/create -H 'Content-Type: application/json' -d '{"Name":"!"}'
api POST /volumes/create -H 'Content-Type: application/json' -d '{'
curl -s --unix-socket $SOCKET http://d/v1.10/containers/json
curl -s --unix-socket $SOCKET http://d/v1.99/containers/json
curl -s --unix-socket $SOCKET http://d/v1.24/containers/json
api DELETE /containers/ok?force=x
api DELETE /containers/ok -o /dev/null
`,
}
