package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	deleteapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stated.dev/stated/daemon/runtime/shimapi"
)

const (
	// joinLimit bounds how long "start" waits for the shim that it joins.
	joinLimit = 5 * time.Second
	// maxParams is more than containerd's parameters ever take.
	maxParams = 10 << 20
	// endUnknown is the code of a container whose end nobody saw; it is Docker's.
	endUnknown = 255
	// shimVersion is that of the task API that containerd speaks to a shim.
	shimVersion = 3
)

// action is one run of the program by containerd, in the directory that containerd keeps for the container.
type action struct {
	verb, namespace, id, address string
}

// parseAction takes containerd's command line apart. It reports whether that is an action of one container.
func parseAction(args []string) (action, bool) {
	var a action
	var ignored string
	var set bool
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for _, name := range []string{"debug", "v", "version", "info"} {
		flags.BoolVar(&set, name, false, "")
	}
	for _, name := range []string{"socket", "debug-socket", "bundle", "publish-binary"} {
		flags.StringVar(&ignored, name, "", "")
	}
	flags.StringVar(&a.namespace, "namespace", "", "")
	flags.StringVar(&a.id, "id", "", "")
	flags.StringVar(&a.address, "address", "", "")
	if err := flags.Parse(args); err != nil {
		return action{}, false // containerd's own parser says what is wrong
	}
	a.verb = flags.Arg(0)
	return a, a.id != "" && (a.verb == "start" || a.verb == "delete")
}

// answer carries out an action. It leaves to containerd's library, and reports so, what concerns a container that has
// no shim of the daemon's, unless the library is too new for the containerd that asks.
func (a action) answer(ctx context.Context) (done bool, err error) {
	dir, err := runtimeDirectory()
	if err != nil {
		return false, err
	}
	if a.verb == "delete" {
		if dir == "" {
			return false, nil
		}
		return true, printDeleted(dir)
	}
	input, err := io.ReadAll(io.LimitReader(os.Stdin, maxParams))
	if err != nil {
		return false, fmt.Errorf("read the parameters: %w", err)
	}
	var params bootapi.BootstrapParams
	newer := proto.Unmarshal(input, &params) == nil && params.InstanceID == a.id && params.Namespace == a.namespace
	var result *bootapi.BootstrapResult
	switch {
	case dir != "":
		result, err = join(ctx, dir, a.id)
	case newer:
		return false, giveBackStdin(input)
	default:
		params = bootapi.BootstrapParams{InstanceID: a.id, Namespace: a.namespace, ContainerdGrpcAddress: a.address,
			ContainerdTtrpcAddress: os.Getenv("TTRPC_ADDRESS"), LogLevel: bootapi.LogLevel_LOG_LEVEL_INFO}
		result, err = manager.NewShimManager(runtimeName).Start(namespaces.WithNamespace(ctx, a.namespace), &params)
	}
	if err != nil {
		return false, err
	}
	if newer {
		return true, printMessage(result)
	}
	return true, json.NewEncoder(os.Stdout).Encode(struct {
		Version  int32  `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}{result.Version, result.Address, result.Protocol})
}

// runtimeDirectory returns what the spec in the working directory names as the runtime directory, or "".
func runtimeDirectory() (string, error) {
	data, err := os.ReadFile(shimapi.BundleFile)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the spec: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", fmt.Errorf("read the spec: %w", err)
	}
	return spec.Annotations[shimapi.DirectoryAnnotation], nil
}

// join leads containerd to the shim of a runtime directory.
func join(ctx context.Context, dir, id string) (*bootapi.BootstrapResult, error) {
	data, err := os.ReadFile(filepath.Join(dir, shimapi.ConfigFile))
	if err != nil {
		return nil, fmt.Errorf("read the shim's configuration: %w", err)
	}
	var cfg shimapi.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return nil, fmt.Errorf("read the shim's configuration: %w", err)
	}
	if cfg.ID != id {
		return nil, fmt.Errorf("%s is the directory of %s, not of %s", dir, cfg.ID, id)
	}
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	conn, err := shimapi.Dial(ctx, dir, shimapi.TaskSocket)
	if err != nil {
		return nil, err
	}
	_ = conn.Close() // it answers; that was the question
	path, err := shimapi.Shorten(cfg.ExecRoot, id, dir)
	if err != nil {
		return nil, fmt.Errorf("name the shim's socket: %w", err)
	}
	return &bootapi.BootstrapResult{Version: shimVersion, Address: "unix://" + path, Protocol: "ttrpc"}, nil
}

// printDeleted lets containerd forget a container whose shim it cannot reach. It touches neither the container nor its
// runtime directory: what runs without a shim is set aside by the daemon, not killed.
func printDeleted(dir string) error {
	exit := shimapi.Exit{Code: endUnknown, Time: time.Now()}
	if data, err := os.ReadFile(filepath.Join(dir, shimapi.ExitFile)); err == nil {
		if err := json.Unmarshal(data, &exit); err != nil {
			return fmt.Errorf("read the exit record: %w", err)
		}
	}
	return printMessage(&deleteapi.DeleteResponse{
		Pid: uint32(exit.Pid), ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(exit.Time),
	})
}

func printMessage(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}

// giveBackStdin makes input readable from the standard input again.
func giveBackStdin(input []byte) error {
	f, err := os.CreateTemp("", "stated-shim")
	if err != nil {
		return err
	}
	_ = os.Remove(f.Name()) // the descriptor stays
	if _, err := f.Write(input); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	os.Stdin = f
	return nil
}
