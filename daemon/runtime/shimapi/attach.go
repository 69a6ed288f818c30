package shimapi

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// The attach socket carries one line of JSON each way, Hello and Answer. Then the shim sends the process's output as
// a Docker client wants it (frames without a tty, raw bytes with one) and closes when there is no more. The client
// sends packets, so that an end of input, a polite leave and a dead daemon can be told apart.

// Hello is a client's first line.
type Hello struct {
	Exec   string `json:",omitempty"` // empty for init
	Stdin  bool   `json:",omitempty"`
	Stdout bool   `json:",omitempty"`
	Stderr bool   `json:",omitempty"`
	// Paced asks that the process waits for this client instead of the client being cut when it lags.
	Paced bool `json:",omitempty"`
}

// Answer is the shim's first line.
type Answer struct {
	Error    string `json:",omitempty"`
	NotFound bool   `json:",omitempty"`
}

// maxLine bounds the first line of either side.
const maxLine = 4096

// WriteLine sends v as one line.
func WriteLine(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(line, '\n'))
	return err
}

// ReadLine receives one line into v. The reader must be at least 4096 bytes large.
func ReadLine(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read first line: %w", err)
	}
	if len(line) > maxLine {
		return errors.New("first line is too long")
	}
	return json.Unmarshal(line, v)
}

// Packets that a client sends.
const (
	PacketData  = 0 // bytes for stdin
	PacketEnd   = 1 // the client's stdin has ended
	PacketLeave = 2 // the client goes; without it a lost connection means that the daemon died
)

// MaxPacket is the largest payload of a packet.
const MaxPacket = 64 << 10

// PacketHeader is the size of a packet's header: a type and a big-endian length.
const PacketHeader = 5

// AppendPacket appends a packet to dst.
func AppendPacket(dst []byte, kind byte, payload []byte) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(payload)))
	return append(dst, payload...)
}

// ReadPacket reads a packet's header and hands its payload to dst, which must hold MaxPacket bytes.
func ReadPacket(r io.Reader, dst []byte) (kind byte, payload []byte, err error) {
	var h [PacketHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > MaxPacket || int(n) > len(dst) {
		return 0, nil, fmt.Errorf("packet of %d bytes", n)
	}
	if _, err := io.ReadFull(r, dst[:n]); err != nil {
		return 0, nil, err
	}
	return h[0], dst[:n], nil
}

// FrameHeader is the size of an output frame's header.
const FrameHeader = 8

// PutFrameHeader writes the header of an output frame of n bytes of stream 1 (stdout) or 2 (stderr).
func PutFrameHeader(dst []byte, stream byte, n int) {
	dst[0], dst[1], dst[2], dst[3] = stream, 0, 0, 0
	binary.BigEndian.PutUint32(dst[4:], uint32(n))
}
