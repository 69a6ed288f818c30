package network_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
	"stated.dev/stated/network/sandbox"
)

// crashEnv holds a crashPlan for a test binary that is to die half-way.
const crashEnv = "STATED_TEST_CRASH"

type crashPlan struct {
	DataDir, ExecRoot, EngineID, ResolvConf string
	Verb                                    string
}

// crashChild starts a daemon's networks and does what it was told to, until the armed point kills it.
func crashChild() {
	var plan crashPlan
	if err := json.Unmarshal([]byte(os.Getenv(crashEnv)), &plan); err != nil {
		panic(err)
	}
	ctx := context.Background()
	c, err := network.Open(ctx, network.Options{DataDir: plan.DataDir, ExecRoot: plan.ExecRoot, EngineID: plan.EngineID, ResolvConf: plan.ResolvConf})
	if err == nil {
		_, err = c.Restore(ctx, nil, nil)
	}
	if err == nil {
		err = crashVerb(ctx, c, plan.Verb)
	}
	fmt.Fprintln(os.Stderr, "survived:", err)
	os.Exit(3)
}

func crashVerb(ctx context.Context, c *network.Controller, verb string) error {
	if verb == "create" {
		_, _, err := c.Create(ctx, fixedNetwork("new"))
		return err
	}
	if verb == "delete" {
		return c.Remove(ctx, "old")
	}
	sb, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{fixedJoin(&holder{})})
	if err != nil || verb == "attach" {
		return err
	}
	if verb == "leave" {
		return c.Leave(ctx, sb.ID, "old")
	}
	return c.Release(ctx, sb.ID)
}

func fixedNetwork(name string) api.CreateRequest {
	return api.CreateRequest{Name: name, IPAM: &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.77.0.0/24")}}}}
}

func fixedJoin(h sandbox.PortHolder) sandbox.JoinRequest {
	return sandbox.JoinRequest{Network: "old", Name: "c", DNSNames: []string{"c"}, IPv4: netip.MustParseAddr("10.77.0.9"), Holder: h,
		Ports: []sandbox.Port{{Proto: "tcp", HostPort: 7777, ContainerPort: 80}}}
}

// Wherever the daemon dies, the next one has every object wholly or not at all, and nothing is left behind: no
// interface, namespace, rule, address, name or record.
func TestCrash(t *testing.T) {
	points := map[string][]string{
		"create":  {"network.create.recorded", "network.create.made"},
		"delete":  {"network.delete.marked", "network.delete.unmade"},
		"attach":  {"network.attach.namespace", "network.attach.connected", "network.attach.held", "network.attach.recorded", "network.attach.published"},
		"leave":   {"network.leave.recorded"},
		"release": {"network.release.recorded"},
	}
	for verb, names := range points {
		for _, point := range names {
			t.Run(point, func(t *testing.T) {
				ctx := context.Background()
				m := newMachine(t)
				c, _ := m.start(t, nil)
				base := state(t, m)
				if verb != "create" {
					create(t, c, fixedNetwork("old"))
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				crash(t, m, verb, point)

				c, _ = m.start(t, nil)
				defer c.Close()
				switch verb {
				case "create":
					_, _, err := c.Create(ctx, fixedNetwork("new"))
					if err != nil && !errdefs.IsConflict(err) {
						t.Errorf("the name or the subnet is blocked: %v", err)
					}
					if err := c.Remove(ctx, "new"); err != nil {
						t.Error(err)
					}
				case "delete":
					if _, err := c.Inspect(ctx, "old", network.InspectRequest{}); !errdefs.IsNotFound(err) {
						t.Errorf("the network is half removed: %v", err)
					}
				default:
					in, err := c.Inspect(ctx, "old", network.InspectRequest{})
					if err != nil || len(in.Containers) != 0 {
						t.Errorf("stale endpoints: %v, %v", in.Containers, err)
					}
					sb, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{fixedJoin(&holder{})})
					if err != nil {
						t.Fatalf("the name, the address or the port is blocked: %v", err)
					}
					release(t, c, sb)
					if err := c.Remove(ctx, "old"); err != nil {
						t.Error(err)
					}
				}
				if got := state(t, m); got != base {
					t.Errorf("want:\n%s\ngot:\n%s", base, got)
				}
				if p := c.Problems(); verb != "attach" && verb != "leave" && verb != "release" && len(p) != 0 {
					t.Errorf("problems: %v", p)
				}
			})
		}
	}
}

func crash(t *testing.T, m *machine, verb, point string) {
	t.Helper()
	plan, err := json.Marshal(crashPlan{m.opts.DataDir, m.opts.ExecRoot, m.opts.EngineID, m.opts.ResolvConf, verb})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), crashEnv+"="+string(plan), fault.EnvVar+"="+point+"=kill")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child did not die at %s: %v: %s", point, err, out)
	}
}

// An operation that fails at any point takes everything back.
func TestInjectedErrors(t *testing.T) {
	for _, point := range []string{"network.create.recorded", "network.create.made",
		"network.attach.namespace", "network.attach.connected", "network.attach.held", "network.attach.recorded", "network.attach.published"} {
		t.Run(point, func(t *testing.T) {
			m := newMachine(t)
			c, _ := m.start(t, nil)
			base := state(t, m)
			verb := strings.Split(point, ".")[1]
			if verb != "create" {
				create(t, c, fixedNetwork("old"))
				base = state(t, m)
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			plan, err := json.Marshal(crashPlan{m.opts.DataDir, m.opts.ExecRoot, m.opts.EngineID, m.opts.ResolvConf, verb})
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), crashEnv+"="+string(plan), fault.EnvVar+"="+point+"=error")
			if out, err := cmd.CombinedOutput(); !strings.Contains(string(out), point+": injected fault") {
				t.Fatalf("%v: %s", err, out)
			}
			if got := state(t, m); got != base {
				t.Errorf("want:\n%s\ngot:\n%s", base, got)
			}
			for k := range keys(t, m) {
				if strings.HasPrefix(k, "endpoint/") || strings.HasPrefix(k, "sandbox/") || strings.HasPrefix(k, "bridge-endpoint/") {
					t.Errorf("record %s stays", k)
				}
			}
		})
	}
}
