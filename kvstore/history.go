package kvstore

import "sort"

// history is the ring of past events, bounded by their number and by their bytes. The last event always stays. What it keeps
// depends on the events alone, so it is the same on all replicas.
type history struct {
	maxEvents int
	maxBytes  int64

	events []*Event // those before head are gone
	head   int
	bytes  int64
}

// eventOverhead is what an event is said to take beside its strings. It is no measure of memory but a number that every
// replica agrees on.
const eventOverhead = 256

func eventSize(e *Event) int64 {
	size := eventOverhead + len(e.Node.Key) + len(e.Node.Value)
	if e.PrevNode != nil {
		size += len(e.PrevNode.Value)
	}
	return int64(size)
}

func (h *history) add(e *Event) {
	if len(h.events) == cap(h.events) && h.head > 0 && h.head >= len(h.events)/2 {
		n := copy(h.events, h.events[h.head:])
		clear(h.events[n:])
		h.events, h.head = h.events[:n], 0
	}
	h.events = append(h.events, e)
	h.bytes += eventSize(e)
	for n := len(h.events) - h.head; n > 1 && (n > h.maxEvents || h.bytes > h.maxBytes); n-- {
		h.bytes -= eventSize(h.events[h.head])
		h.events[h.head] = nil
		h.head++
	}
}

// all returns the events that are kept. They are good until the next add.
func (h *history) all() []*Event { return h.events[h.head:] }

// start is the index of the oldest event, 0 when there is none.
func (h *history) start() uint64 {
	if all := h.all(); len(all) > 0 {
		return all[0].Index()
	}
	return 0
}

// since returns the events with an index from the given one on.
func (h *history) since(index uint64) []*Event {
	all := h.all()
	return all[sort.Search(len(all), func(i int) bool { return all[i].Index() >= index }):]
}
