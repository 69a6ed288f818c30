package raft

import (
	"context"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// bridge lets raft log to l. What raft says in the course of things is for debugging: who leads is told by Leading, and
// errors are returned.
func bridge(l *slog.Logger) hclog.Logger {
	b := hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Off, Output: io.Discard})
	b.RegisterSink(sinkTo{l})
	return b
}

type sinkTo struct{ log *slog.Logger }

// Accept is for hclog.
func (s sinkTo) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Error {
		to = slog.LevelWarn
	}
	if level < hclog.Debug || !s.log.Enabled(context.Background(), to) {
		return
	}
	s.log.Log(context.Background(), to, "raft: "+msg, args...)
}
