package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// knownDifferences are fields of inspect, or what is below them, that may differ from dockerd's, each with the reason.
var knownDifferences = map[string]string{
	"Created": "a time", "Id": "random", "State.Pid": "chosen by the kernel", "State.StartedAt": "a time", "State.FinishedAt": "a time",
	"Image": "the image was imported on each side", "GraphDriver.Data": "random names",
	"ResolvConfPath": "the data root", "HostnamePath": "the data root", "HostsPath": "the data root", "LogPath": "the data root",
	"Config.Hostname":                           "the short id",
	"NetworkSettings.IPAddress":                 "the next that is free",
	"NetworkSettings.Networks.bridge.IPAddress": "the next that is free",
	"NetworkSettings.SandboxID":                 "random",
	"NetworkSettings.Networks.bridge.NetworkID": "known from the creation on, in dockerd from the start on",
	"NetworkSettings.Networks.none.NetworkID":   "as above",
	"NetworkSettings.Networks.host.NetworkID":   "as above",
	"NetworkSettings.Networks.net.NetworkID":    "as above",
	"NetworkSettings.SandboxKey":                "below the exec root",
}

// TestInspect creates and starts the same containers with stated and dockerd, and compares what inspect says field by
// field: names, types, null or empty, values.
func TestInspect(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	oracle := startOracle(t)
	oracle.importBusybox(t)
	sides := [2]side{h.side(), oracle}
	for name, args := range map[string]string{
		"plain": "busybox sleep 1000",
		"full": `--hostname h --domainname d -u user -w /w -e A=b --label l=1 --restart on-failure:3 --memory 64m --memory-reservation 32m --cpus 0.5 --cpu-shares 512 --pids-limit 99 ` +
			`--ulimit nofile=100:200 --sysctl net.ipv4.ip_forward=0 --cap-add NET_ADMIN --cap-drop CHOWN --security-opt no-new-privileges --read-only --tmpfs /t:size=1m ` +
			`--shm-size 1m --device /dev/null:/dev/mine --add-host a:1.2.3.4 --dns 9.9.9.9 --dns-search s --dns-option ndots:2 --log-opt max-size=1m --log-opt max-file=2 ` +
			`--stop-signal USR1 --stop-timeout 3 --init --group-add 7 --oom-score-adj 100 --annotation a=b -p 127.0.0.1:23456:80 --expose 81/udp -v named:/n -v $D/bind:/b:ro --mount type=volume,src=m,dst=/m,volume-nocopy ` +
			`--mount type=bind,src=/usr,dst=/mb,readonly --mount type=tmpfs,dst=/mt,tmpfs-size=1024 --health-cmd true --health-interval 1h --entrypoint sleep -t -i busybox 1000`,
		"host":       "--network host --pid host --ipc host --uts host --privileged busybox sleep 1000",
		"none":       "--network none --ipc private --cgroupns host busybox sleep 1000",
		"user's net": "--network net --network-alias x --ip 10.66.0.9 --mac-address 02:00:00:00:00:09 busybox sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			phases := []string{"create", "start", "stop"}
			var got [2]map[string]map[string]any
			for i, s := range sides {
				got[i] = map[string]map[string]any{}
				t.Cleanup(func() {
					_, _ = s.script(context.Background(), "docker rm -fv box; docker network rm net; docker volume prune -af") // for the next
				})
				for n, step := range []string{"docker network create --subnet 10.66.0.0/24 net; docker volume create mm; docker create --name box " + strings.ReplaceAll(args, "src=m,", "src=mm,"), "docker start box", "docker kill box && docker wait box"} {
					if out, err := s.script(t.Context(), step); err != nil {
						t.Fatalf("%s: %s: %v: %s", s.name, step, err, out)
					}
					out, err := s.script(t.Context(), "docker inspect box")
					if err != nil {
						t.Fatalf("%s: %v: %s", s.name, err, out)
					}
					out = strings.ReplaceAll(strings.ReplaceAll(s.normalize(out), "ROOT/", "DATA/"), "DIR/exec", "EXEC")
					var docs []map[string]any
					if err := json.Unmarshal([]byte(out), &docs); err != nil {
						t.Fatal(err)
					}
					sortList(docs[0]["Mounts"]) // dockerd's order is any
					if hc, ok := docs[0]["HostConfig"].(map[string]any); ok {
						sortList(hc["Binds"]) // so is the docker command's
					}
					got[i][phases[n]] = docs[0]
				}
			}
			for _, phase := range phases {
				for _, d := range differences("", got[0][phase], got[1][phase]) {
					t.Errorf("after %s: %s", phase, d)
				}
			}
		})
	}
}

// sortList sorts a JSON list, if v is one.
func sortList(v any) {
	list, _ := v.([]any)
	slices.SortFunc(list, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
}

// differences lists where two documents differ, ours first.
func differences(path string, ours, theirs any) []string {
	for prefix := range knownDifferences {
		if path == prefix || strings.HasPrefix(path, prefix+".") {
			return nil
		}
	}
	a, isMap := ours.(map[string]any)
	b, bothMaps := theirs.(map[string]any)
	if !isMap || !bothMaps {
		if !reflect.DeepEqual(ours, theirs) {
			x, _ := json.Marshal(ours)
			y, _ := json.Marshal(theirs) // both were JSON
			return []string{fmt.Sprintf("%s is %s, dockerd has %s", path, x, y)}
		}
		return nil
	}
	keys := maps.Clone(a)
	maps.Copy(keys, b)
	var list []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		at := strings.TrimPrefix(path+"."+key, ".")
		x, inOurs := a[key]
		y, inTheirs := b[key]
		switch {
		case inOurs && inTheirs:
			list = append(list, differences(at, x, y)...)
		case knownDifferences[at] != "":
		case inOurs:
			list = append(list, at+" is not in dockerd's answer")
		default:
			list = append(list, at+" is missing")
		}
	}
	return list
}
