package images

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	copySize  = 256 << 10 // bytes that a copy to or from a temporary file moves at once
	readAhead = 64 << 10  // buffer in front of a decompressor; reads that are larger pass it by
)

// maxWindow bounds the memory that a zstd stream may ask for. The default levels use 8 MB, the long mode 128 MB.
const maxWindow = 128 << 20

var (
	magicGzip  = []byte{0x1f, 0x8b, 0x08}
	magicBzip2 = []byte("BZh")
	magicXz    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicZstd  = []byte{0x28, 0xb5, 0x2f, 0xfd}
)

// decompress returns the plain bytes of r, which may be compressed with gzip, bzip2, xz or zstd, or not at all.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, readAhead)
	head, err := buf.Peek(len(magicXz))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(buf)
		if err != nil {
			return nil, fmt.Errorf("open gzip stream: %w", err)
		}
		return z, nil
	case bytes.HasPrefix(head, magicZstd):
		z, err := zstd.NewReader(buf, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("open zstd stream: %w", err)
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(head, magicXz):
		z, err := xz.ReaderConfig{DictCap: xzMinDict}.NewReader(buf)
		if err != nil {
			return nil, fmt.Errorf("open xz stream: %w", err)
		}
		return io.NopCloser(z), nil
	case bytes.HasPrefix(head, magicBzip2):
		return io.NopCloser(bzip2.NewReader(buf)), nil
	}
	return io.NopCloser(buf), nil
}

// xzMinDict is the least dictionary the xz reader takes; a stream's own header can ask for more.
const xzMinDict = 4 << 10

// readBounded reads r to its end and refuses more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
