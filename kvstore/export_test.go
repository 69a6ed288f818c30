package kvstore

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"
)

// Hash is what a name is found by in its directory.
func Hash(name string) uint32 { return hash(name, 0) }

// UseUpEpochs lets the store freeze its state a few times before the numbers of its epochs are used up.
func (s *Store) UseUpEpochs() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree.epoch = math.MaxUint32 - 3
}

// Rechecksum corrects the checksums of a stream's chunks, as far as it has any.
func Rechecksum(b []byte) []byte {
	b = slices.Clone(b)
	for at := 0; at+8 <= len(b); {
		if at+5 <= len(b) && (string(b[at:at+5]) == streamMagic || string(b[at:at+5]) == replicaMagic || string(b[at:at+5]) == replicaFirst) {
			at += 5
			continue
		}
		size := int(binary.LittleEndian.Uint32(b[at:]))
		if size > len(b)-at-8 {
			break
		}
		binary.LittleEndian.PutUint32(b[at+4:], crc32.Checksum(b[at+8:at+8+size], castagnoli))
		at += 8 + size
	}
	return b
}

// WatchedPaths is the number of paths for which the hub has feeds.
func (s *Store) WatchedPaths() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.hub.feeds)
}
