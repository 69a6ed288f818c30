package containers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"

	"github.com/containerd/errdefs"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime"
)

// logOptions reads the record's log configuration.
func (s *Service) logOptions(r *Record) (logs.Options, error) {
	cfg := r.HostConfig.LogConfig
	o, err := logs.Parse(cmp.Or(cfg.Type, s.cfg.LogDriver), cfg.Config)
	if err != nil {
		return o, err
	}
	o.Path = logPath(filepath.Join(s.cfg.Dir, r.ID), r.ID, o.Driver)
	return o, nil
}

// logPath is the live file of a log driver, "" for one that has none.
func logPath(dir, id, driver string) string {
	switch driver {
	case logs.JSONFile:
		return filepath.Join(dir, id+"-json.log")
	case logs.Local:
		return filepath.Join(dir, "local-logs", "container.log")
	}
	return ""
}

// shimLog tells the shim where to write.
func (s *Service) shimLog(r *Record) (runtime.LogConfig, error) {
	o, err := s.logOptions(r)
	if err != nil {
		return runtime.LogConfig{}, err
	}
	attrs, err := logs.SelectAttrs(r.HostConfig.LogConfig.Config, logs.Info{
		ContainerID: r.ID, ContainerName: r.Name, ContainerEntrypoint: r.Path, ContainerArgs: r.Args,
		ContainerImageID: r.Image, ContainerImageName: r.Config.Image, ContainerCreated: r.Created,
		ContainerEnv: r.Config.Env, ContainerLabels: r.Config.Labels, DaemonName: "docker",
	})
	if err != nil {
		return runtime.LogConfig{}, fmt.Errorf("log options: %w", err)
	}
	return runtime.LogConfig{Driver: o.Driver, Path: o.Path, MaxSize: o.MaxSize, MaxFiles: o.MaxFiles, Compress: o.Compress, Attrs: attrs}, nil
}

// defaultLog fills in the daemon's log driver where the container names none.
func (s *Service) defaultLog(r *Record) error {
	cfg := &r.HostConfig.LogConfig
	if cfg.Type == "" {
		cfg.Type = s.cfg.LogDriver
		if len(cfg.Config) == 0 {
			cfg.Config = maps.Clone(s.cfg.LogOpts)
		}
	}
	if cfg.Config == nil {
		cfg.Config = map[string]string{}
	}
	return logs.Validate(cfg.Type, cfg.Config)
}

// Logs opens a container's output.
func (s *Service) Logs(_ context.Context, ref string, req api.LogsRequest) (api.LogStream, bool, error) {
	c, err := s.lookup(ref)
	if err != nil {
		return nil, false, err
	}
	rec := c.rec()
	reader, err := s.openLog(c, logs.ReadRequest{Since: req.Since, Until: req.Until, Tail: req.Tail, Follow: req.Follow})
	if err != nil {
		return nil, false, err
	}
	return &logStream{reader: reader, stdout: req.Stdout, stderr: req.Stderr}, !rec.Config.Tty, nil
}

// openLog opens a container's log; one that follows ends with the run, or with the container.
func (s *Service) openLog(c *Container, req logs.ReadRequest) (*logs.Reader, error) {
	o, err := s.logOptions(c.rec())
	if err != nil {
		return nil, err
	}
	if o.Driver == logs.None {
		return nil, errdefs.ErrNotImplemented.WithMessage("configured logging driver does not support reading")
	}
	if req.Follow {
		req.Done = c.removed
		if r := c.live(); r != nil {
			req.Done = r.exited
		} else if !c.rec().State.Restarting {
			req.Follow = false
		}
		req.Notifier = s.cfg.Notifier
	}
	return logs.Open(o, req)
}

// logStream yields the records of the wanted streams.
type logStream struct {
	reader         *logs.Reader
	stdout, stderr bool
}

func (l *logStream) Next(ctx context.Context) (api.LogRecord, error) {
	for {
		r, err := l.reader.Next(ctx)
		if err != nil {
			return api.LogRecord{}, err
		}
		if (r.Stream == "stderr" && l.stderr) || (r.Stream != "stderr" && l.stdout) {
			return api.LogRecord{Stream: r.Stream, Time: r.Time, Line: r.Line, Attrs: r.Attrs}, nil
		}
	}
}

func (l *logStream) Close() error { return l.reader.Close() }

// pastOutput is what a client that attaches with logs gets before the live output.
func (s *Service) pastOutput(c *Container, req api.AttachRequest) (io.ReadCloser, error) {
	reader, err := s.openLog(c, logs.ReadRequest{Tail: -1})
	if err != nil {
		return nil, err
	}
	return &framed{logStream: logStream{reader: reader, stdout: req.Stdout, stderr: req.Stderr}, raw: c.rec().Config.Tty}, nil
}

// framed reads records as a client's stream has them.
type framed struct {
	logStream
	raw bool
	buf bytes.Buffer
}

func (f *framed) Read(b []byte) (int, error) {
	for f.buf.Len() == 0 {
		r, err := f.Next(context.Background()) // reads files only, so it does not block
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			return 0, err
		}
		if !f.raw {
			header := [8]byte{0: 1}
			if r.Stream == "stderr" {
				header[0] = 2
			}
			binary.BigEndian.PutUint32(header[4:], uint32(len(r.Line)))
			f.buf.Write(header[:])
		}
		f.buf.Write(r.Line)
	}
	return f.buf.Read(b)
}
