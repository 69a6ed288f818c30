package stream

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"stated.dev/stated/graphdriver/archive"
)

// Write writes the stream of a volume whose files are below dir. Owners, modes, times of change, every extended
// attribute, hard links, devices and FIFOs are kept; holes become zeros. A file that becomes shorter while it is read is
// an error; what goes away meanwhile is left out.
func Write(ctx context.Context, out io.Writer, head Head, dir string) (Tail, error) {
	head.Format, head.Version = Format, Version
	sum := sha256.New()
	w := tar.NewWriter(io.MultiWriter(out, sum))
	if err := writeDocument(w, headName, head); err != nil {
		return Tail{}, err
	}
	var tail Tail
	packed, err := archive.WriteTree(ctx, w, dir, archive.PackOptions{Prefix: treeName, AllXattrs: true, LeftOut: tail.left})
	if err != nil {
		return Tail{}, fmt.Errorf("write the files: %w", err)
	}
	if err := w.Flush(); err != nil { // pads the last file
		return Tail{}, err
	}
	tail.Entries, tail.Bytes = packed.Entries, packed.Bytes
	tail.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if err := writeDocument(w, tailName, tail); err != nil {
		return Tail{}, err
	}
	return tail, w.Close()
}

// writeDocument writes v as a file with a header of one block: a reader finds what is before the header by that.
func writeDocument(w *tar.Writer, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}
