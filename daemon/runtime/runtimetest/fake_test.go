package runtimetest_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/runtimetest"
)

func TestFake(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) *runtimetest.Harness {
		f := runtimetest.NewFake()
		return &runtimetest.Harness{
			Runtime:  f,
			Again:    func(*testing.T) runtime.Runtime { return f.Again() },
			KillShim: func(_ *testing.T, id string) { f.KillShim(id) },
			KillInit: func(_ *testing.T, id string, _ int) { f.KillInit(id) },
			Spec:     spec,
		}
	})
}

func spec(id string, args ...string) *specs.Spec { return runtimetest.Spec("/rootfs", "/"+id, args...) }

func TestFakeLies(t *testing.T) {
	ctx := t.Context()
	f := runtimetest.NewFake()
	boom := errors.New("boom")
	f.Fail("Spawn", boom)
	if _, err := f.Spawn(ctx, runtime.SpawnRequest{ID: "a"}); !errors.Is(err, boom) {
		t.Fatalf("Spawn: %v", err)
	}
	task := runtimetest.Value(t, runtimetest.Of(f.Spawn(ctx, runtime.SpawnRequest{ID: "a"})))
	f.Drop("Create")
	if _, err := task.Create(ctx, spec("a", "wait")); !errdefs.IsUnavailable(err) {
		t.Fatalf("Create: %v", err)
	}
	if st := runtimetest.Value(t, runtimetest.Of(task.State(ctx))); st.Status != runtime.StatusCreated {
		t.Fatalf("state %+v", st)
	}
	until := make(chan struct{})
	f.Hold("Start", until)
	done := make(chan error)
	go func() { done <- task.Start(ctx) }()
	close(until)
	runtimetest.Must(t, <-done)
	f.End("a", runtime.Exit{Code: 9, OOMKilled: true})
	exit := runtimetest.Value(t, runtimetest.Of(task.Wait(ctx)))
	if exit.Code != 9 || !exit.OOMKilled {
		t.Fatalf("exit %+v", exit)
	}
	if calls := f.Calls(); !slices.Contains(calls, "Start a") {
		t.Fatalf("calls %v", calls)
	}
}
