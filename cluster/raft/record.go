package raft

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"
	"golang.org/x/crypto/chacha20poly1305"
)

// A record is an entry as a host keeps it: a header, then raft's data, which is sealed when the host has a key.
const (
	recordVersion = 1
	recordHeader  = 19 // version, flags, kind, term (8), time (8)

	flagSealed = 1 << 0
)

// An entry's data, as all voters see it, is a version, the machine's id and the command.
const (
	entryVersion = 1
	entryHeader  = 2
)

// KeySize is the size of a key in bytes.
const KeySize = chacha20poly1305.KeySize

// keyring seals with its first key and opens with any. An empty one does not seal.
type keyring []cipher.AEAD

func newKeyring(keys [][]byte) (keyring, error) {
	var ring keyring
	for _, key := range keys {
		aead, err := chacha20poly1305.NewX(key)
		if err != nil {
			return nil, fmt.Errorf("a key has %d bytes instead of %d", len(key), KeySize)
		}
		ring = append(ring, aead)
	}
	return ring, nil
}

// overhead is what sealing adds, at most.
const sealOverhead = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

// seal appends plain to dst, sealed by a nonce of its own and bound to what it goes with.
func (k keyring) seal(dst, plain, with []byte) []byte {
	var nonce [chacha20poly1305.NonceSizeX]byte
	_, _ = rand.Read(nonce[:]) // never fails
	dst = append(dst, nonce[:]...)
	return k[0].Seal(dst, nonce[:], plain, with)
}

func (k keyring) open(sealed, with []byte) ([]byte, error) {
	if len(k) == 0 {
		return nil, fmt.Errorf("it is sealed, and no key was given: %w", ErrKey)
	}
	if len(sealed) < sealOverhead {
		return nil, fmt.Errorf("it is too short to be sealed: %w", ErrDamaged)
	}
	for _, aead := range k {
		plain, err := aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], with)
		if err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("no key that was given opens it: %w", ErrKey)
}

// bound is what a sealed record is bound to: its header and its place in the log.
func bound(header []byte, index uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(make([]byte, 0, recordHeader+8), header[:recordHeader]...), index)
}

func (k keyring) appendRecord(buf []byte, l *hraft.Log) ([]byte, error) {
	if len(l.Extensions) > 0 {
		return nil, errors.New("an entry has extensions, which the log does not keep")
	}
	at := len(buf)
	flags := byte(0)
	if len(k) > 0 {
		flags |= flagSealed
	}
	buf = append(buf, recordVersion, flags, byte(l.Type))
	buf = binary.LittleEndian.AppendUint64(buf, l.Term)
	var appended int64
	if !l.AppendedAt.IsZero() {
		appended = l.AppendedAt.UnixNano()
	}
	buf = binary.LittleEndian.AppendUint64(buf, uint64(appended))
	if len(k) == 0 {
		return append(buf, l.Data...), nil
	}
	return k.seal(buf, l.Data, bound(buf[at:], l.Index)), nil
}

// parseRecord fills l with the record of an index. Its data is the record's unless that is sealed.
func (k keyring) parseRecord(record []byte, index uint64, l *hraft.Log) error {
	if len(record) < recordHeader {
		return fmt.Errorf("it has %d bytes: %w", len(record), ErrDamaged)
	}
	if record[0] != recordVersion || record[1]&^flagSealed != 0 {
		return fmt.Errorf("its version %d with flags %#x is not known to this version of stated: start the version that wrote it, or a later one: %w", record[0], record[1], ErrVersion)
	}
	*l = hraft.Log{Index: index, Type: hraft.LogType(record[2]), Term: binary.LittleEndian.Uint64(record[3:]), Data: record[recordHeader:]}
	if appended := int64(binary.LittleEndian.Uint64(record[11:])); appended != 0 {
		l.AppendedAt = time.Unix(0, appended)
	}
	if record[1]&flagSealed != 0 {
		plain, err := k.open(l.Data, bound(record, index))
		if err != nil {
			return err
		}
		l.Data = plain
	}
	return nil
}

// entry is the data of a command.
func entry(machine byte, command []byte) []byte {
	return append(append(make([]byte, 0, entryHeader+len(command)), entryVersion, machine), command...)
}

// parseEntry is the reverse of entry.
func parseEntry(data []byte) (machine byte, command []byte, err error) {
	if len(data) < entryHeader {
		return 0, nil, fmt.Errorf("a command has no header: %w", ErrDamaged)
	}
	if data[0] != entryVersion {
		return 0, nil, fmt.Errorf("a command's version %d is not known to this version of stated: start the version that wrote it, or a later one: %w", data[0], ErrVersion)
	}
	return data[1], data[entryHeader:], nil
}
