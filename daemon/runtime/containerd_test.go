package runtime_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	shimdelete "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	. "stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/ids"
)

// containerd stands for an external containerd: it collects events.
type containerd struct {
	topics chan string
}

func (c *containerd) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	c.topics <- r.Envelope.Topic
	return &emptypb.Empty{}, nil
}

// await takes the next event.
func (c *containerd) await(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c.topics:
		if got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	case <-ctx.Done():
		t.Fatalf("no event %q", want)
	}
}

// TestUnderContainerd speaks containerd's shim protocol to the program: start, the task API, delete.
func TestUnderContainerd(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	events := &containerd{topics: make(chan string, 16)}
	address := filepath.Join(w.execRoot, "events.sock")
	l := Value(t, Of(net.Listen("unix", address)))
	server := Value(t, Of(ttrpc.NewServer()))
	eventsapi.RegisterTTRPCEventsService(server, events)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background(), l) })
	defer serving.Wait()
	defer server.Close()

	id := ids.New()
	bundle := filepath.Join(w.execRoot, id) // "delete" finds it by this name
	Must(t, os.Mkdir(bundle, 0o700))
	Must(t, os.WriteFile(filepath.Join(bundle, "config.json"),
		Value(t, Of(json.Marshal(w.spec(id, "exit", "5")))), 0o600))
	log := filepath.Join(bundle, "log") // containerd reads the shim's log there
	Must(t, unix.Mkfifo(log, 0o600))
	logFile := Value(t, Of(os.OpenFile(log, os.O_RDWR, 0)))
	defer logFile.Close()

	action := func(name string, stdin []byte) []byte {
		t.Helper()
		cmd := exec.Command(built.shim, "-namespace", "stated-test", "-address", address, "-id", id, "-bundle", bundle, name)
		cmd.Dir = bundle
		cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+address)
		cmd.Stdin = bytes.NewReader(stdin)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", name, err, stderr.String())
		}
		return out
	}
	params := Value(t, Of(proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: "stated-test", ContainerdGrpcAddress: address,
		ContainerdTtrpcAddress: address, SocketDir: proto.String(filepath.Join(w.execRoot, "s")),
	})))
	var boot bootapi.BootstrapResult
	Must(t, proto.Unmarshal(action("start", params), &boot))
	if boot.Version != 3 || boot.Protocol != "ttrpc" {
		t.Fatalf("bootstrap %v", &boot)
	}
	conn := Value(t, Of(net.Dial("unix", strings.TrimPrefix(boot.Address, "unix://"))))
	client := ttrpc.NewClient(conn)
	defer client.Close()
	tasks := taskapi.NewTTRPCTaskClient(client)
	md := ttrpc.MD{}
	md.Set("containerd-namespace-ttrpc", "stated-test")
	ctx = ttrpc.WithMetadata(ctx, md)

	connected := Value(t, Of(tasks.Connect(ctx, &taskapi.ConnectRequest{ID: id})))
	t.Cleanup(func() { _ = unix.Kill(int(connected.ShimPid), unix.SIGKILL) })
	opts := Value(t, Of(typeurl.MarshalAnyToProto(&options.Options{
		BinaryName: Value(t, Of(filepath.Abs(Value(t, Of(exec.LookPath(built.runc)))))),
		Root:       filepath.Join(w.execRoot, "state"),
	})))
	created := Value(t, Of(tasks.Create(ctx, &taskapi.CreateTaskRequest{ID: id, Bundle: bundle, Options: opts})))
	if created.Pid == 0 {
		t.Fatal("no pid")
	}
	Value(t, Of(tasks.Start(ctx, &taskapi.StartRequest{ID: id})))
	exit := Value(t, Of(tasks.Wait(ctx, &taskapi.WaitRequest{ID: id})))
	if exit.ExitStatus != 5 {
		t.Fatalf("exit %v", exit)
	}
	events.await(ctx, t, "/tasks/create")
	events.await(ctx, t, "/tasks/start")
	events.await(ctx, t, "/tasks/exit")
	Value(t, Of(tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})))
	events.await(ctx, t, "/tasks/delete") // before the shutdown, which drops what is not sent
	if _, err := tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		t.Fatal(err)
	}
	var deleted shimdelete.DeleteResponse
	Must(t, proto.Unmarshal(action("delete", nil), &deleted))
	if deleted.ExitStatus != 5 {
		t.Errorf("delete says %v", &deleted)
	}
	for start, err := shimapi.StartTime(int(connected.ShimPid)); err == nil && start != 0 && ctx.Err() == nil; {
		start, err = shimapi.StartTime(int(connected.ShimPid))
	}
}
