package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/ids"
)

// The files of a record.
const (
	diffFile    = "diff"
	parentFile  = "parent"
	cacheIDFile = "cache-id"
	sizeFile    = "size"
	splitFile   = "tar-split.json.gz"

	mountIDFile = "mount-id"
	initIDFile  = "init-id"
)

const initSuffix = "-init"

func missing(what string) error {
	return fmt.Errorf("missing: %s: %w", what, errdefs.ErrDataLoss)
}

// readRecord reads the record of a layer. A record that is not whole is an error that names the file.
func readRecord(dir string, chain digest.Digest) (Info, error) {
	info := Info{ChainID: chain}
	for _, f := range []struct {
		name     string
		optional bool
		parse    func(string) error
	}{
		{diffFile, false, func(s string) (err error) { info.DiffID, err = digest.Parse(s); return err }},
		{parentFile, true, func(s string) (err error) { info.Parent, err = digest.Parse(s); return err }},
		{cacheIDFile, false, func(s string) error { info.CacheID = s; return validDriverID(s) }},
		{sizeFile, false, func(s string) (err error) { info.Size, err = strconv.ParseInt(s, 10, 64); return err }},
	} {
		text, err := readSmall(filepath.Join(dir, f.name))
		if errors.Is(err, fs.ErrNotExist) {
			if f.optional {
				continue
			}
			return info, missing("file " + f.name)
		}
		if err != nil {
			return info, err
		}
		if err := f.parse(text); err != nil {
			return info, fmt.Errorf("file %s holds %.80q: %w: %w", f.name, text, err, errdefs.ErrDataLoss)
		}
	}
	if got := ChainID(info.Parent, info.DiffID); got != chain {
		return info, fmt.Errorf("files diff and parent belong to chain %s: %w", got, errdefs.ErrDataLoss)
	}
	return info, nil
}

// validDriverID accepts what Docker has as the driver's id of a layer: 64 digits, perhaps with -init.
func validDriverID(s string) error {
	if !ids.Valid(strings.TrimSuffix(s, initSuffix)) {
		return errors.New("not an id")
	}
	return nil
}

// readSmall reads a file of at most a few hundred bytes, without the blanks around it.
func readSmall(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var buf [512]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return string(bytes.TrimSpace(buf[:n])), nil
}

// writeRecord writes the files of a layer's record that say what it is.
func writeRecord(dir string, info Info) error {
	files := map[string]string{
		diffFile:    info.DiffID.String(),
		cacheIDFile: info.CacheID,
		sizeFile:    strconv.FormatInt(info.Size, 10),
	}
	if info.Parent != "" {
		files[parentFile] = info.Parent.String()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write layer record: %w", err)
		}
	}
	return nil
}
