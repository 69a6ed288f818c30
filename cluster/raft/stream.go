package raft

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// A snapshot is a stream of frames: for each machine its name and version, then its bytes in chunks, then their number and
// checksum; at the end the number of machines. docs/formats/log.md draws them. It has no limit of size.
const (
	frameSection = 1
	frameChunk   = 2
	frameEnd     = 3
	frameLast    = 4

	frameHeader = 12 // kind, three zeros, length, CRC-32C of all else
)

const (
	chunkSize = 256 << 10
	maxFrame  = 1 << 20 // a longer one is damage
)

func writeFrame(w io.Writer, kind byte, body []byte) error {
	header := make([]byte, frameHeader)
	header[0] = kind
	binary.LittleEndian.PutUint32(header[4:], uint32(len(body)))
	binary.LittleEndian.PutUint32(header[8:], crc32.Update(crc32.Checksum(header[:8], castagnoli), castagnoli, body))
	if _, err := w.Write(header); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// readFrame reads a frame into buf, which it grows. Whatever is wrong with it is ErrDamaged.
func readFrame(r io.Reader, buf []byte) (kind byte, body []byte, err error) {
	header := make([]byte, frameHeader)
	if _, err := io.ReadFull(r, header); err != nil {
		return 0, nil, cutShort(err)
	}
	n := binary.LittleEndian.Uint32(header[4:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes: %w", n, ErrDamaged)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	body = buf[:n]
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, cutShort(err)
	}
	if crc32.Update(crc32.Checksum(header[:8], castagnoli), castagnoli, body) != binary.LittleEndian.Uint32(header[8:]) {
		return 0, nil, fmt.Errorf("a frame's checksum does not match: %w", ErrDamaged)
	}
	return header[0], body, nil
}

// cutShort tells an end that comes too early from a disk that cannot be read.
func cutShort(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it ends early: %w", ErrDamaged)
	}
	return err
}

// chunks writes a section's bytes as frames.
type chunks struct {
	w   io.Writer
	n   uint64
	sum uint32
}

func (c *chunks) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part := rest[:min(len(rest), chunkSize)]
		if err := writeFrame(c.w, frameChunk, part); err != nil {
			return len(p) - len(rest), err
		}
		c.n += uint64(len(part))
		c.sum = crc32.Update(c.sum, castagnoli, part)
		rest = rest[len(part):]
	}
	return len(p), nil
}

// end is the body of the frame that ends a section.
func (c *chunks) end() []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, c.n), c.sum)
}

// writeSection writes one machine's part of a snapshot.
func writeSection(w io.Writer, name string, s Section) error {
	body := append(binary.LittleEndian.AppendUint32(nil, s.Version), name...)
	if err := writeFrame(w, frameSection, body); err != nil {
		return err
	}
	c := &chunks{w: w}
	buffered := bufio.NewWriterSize(c, chunkSize)
	if err := s.Write(buffered); err != nil {
		return err
	}
	if err := buffered.Flush(); err != nil {
		return err
	}
	return writeFrame(w, frameEnd, c.end())
}

func writeLast(w io.Writer, sections int) error {
	return writeFrame(w, frameLast, binary.LittleEndian.AppendUint32(nil, uint32(sections)))
}

// readSections calls restore for each section, with its bytes up to their end. A section that restore has not read to its
// end is read here, so that all of it is checked.
func readSections(r io.Reader, restore func(name string, version uint32, r io.Reader) error) error {
	buf := make([]byte, chunkSize)
	for sections := uint32(0); ; sections++ {
		kind, body, err := readFrame(r, buf)
		if err != nil {
			return err
		}
		switch {
		case kind == frameLast && len(body) == 4:
			if binary.LittleEndian.Uint32(body) != sections {
				return fmt.Errorf("it has %d sections instead of %d: %w", sections, binary.LittleEndian.Uint32(body), ErrDamaged)
			}
			return nil
		case kind == frameSection && len(body) >= 4:
		default:
			return fmt.Errorf("a frame of kind %d with %d bytes is out of place: %w", kind, len(body), ErrDamaged)
		}
		name, version := string(body[4:]), binary.LittleEndian.Uint32(body)
		section := &sectionReader{r: r, buf: buf}
		if err := restore(name, version, section); err != nil {
			if section.err != nil && section.err != io.EOF {
				err = section.err // what the machine made of it does not matter
			}
			return fmt.Errorf("section %s: %w", name, err)
		}
		if _, err := io.Copy(io.Discard, section); err != nil {
			return fmt.Errorf("section %s: %w", name, err)
		}
	}
}

// sectionReader reads a section's bytes.
type sectionReader struct {
	r    io.Reader
	buf  []byte
	rest []byte // of the chunk
	seen chunks
	err  error
}

func (s *sectionReader) Read(p []byte) (int, error) {
	for len(s.rest) == 0 && s.err == nil {
		s.next()
	}
	if len(s.rest) == 0 {
		return 0, s.err
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *sectionReader) next() {
	kind, body, err := readFrame(s.r, s.buf)
	switch {
	case err != nil:
		s.err = err
	case kind == frameChunk:
		s.rest = body
		s.seen.n += uint64(len(body))
		s.seen.sum = crc32.Update(s.seen.sum, castagnoli, body)
	case kind == frameEnd && string(body) == string(s.seen.end()):
		s.err = io.EOF
	default:
		s.err = fmt.Errorf("the section does not end as it should: %w", ErrDamaged)
	}
}
