package kvstore

import "time"

// expiry holds the paths that expire, the next one first. It knows nothing of the tree: whoever sets or removes a path there
// tells it. Paths that are due at the same moment come in their own order, so that all replicas remove them alike.
type expiry struct {
	heap []due
	at   map[string]int // where a path is in heap
}

type due struct {
	time time.Time
	path string
}

func (d due) before(o due) bool {
	if c := d.time.Compare(o.time); c != 0 {
		return c < 0
	}
	return d.path < o.path
}

// set makes path expire at t, or never when t is zero.
func (x *expiry) set(path string, t time.Time) {
	i, found := x.at[path]
	switch {
	case t.IsZero():
		if found {
			x.removeAt(i)
		}
		return
	case found:
		x.heap[i].time = t
	default:
		if x.at == nil {
			x.at = make(map[string]int)
		}
		i = len(x.heap)
		x.heap = append(x.heap, due{t, path})
		x.at[path] = i
	}
	x.settle(i)
}

// next returns the path that is due first.
func (x *expiry) next() (due, bool) {
	if len(x.heap) == 0 {
		return due{}, false
	}
	return x.heap[0], true
}

func (x *expiry) removeAt(i int) {
	last := len(x.heap) - 1
	delete(x.at, x.heap[i].path)
	if i != last {
		x.heap[i] = x.heap[last]
		x.at[x.heap[i].path] = i
	}
	x.heap[last] = due{}
	x.heap = x.heap[:last]
	if i != last {
		x.settle(i)
	}
}

// settle moves the element at i to where it belongs.
func (x *expiry) settle(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !x.heap[i].before(x.heap[parent]) {
			break
		}
		x.swap(i, parent)
		i = parent
	}
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(x.heap); child++ {
			if x.heap[child].before(x.heap[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		x.swap(i, least)
		i = least
	}
}

func (x *expiry) swap(i, j int) {
	x.heap[i], x.heap[j] = x.heap[j], x.heap[i]
	x.at[x.heap[i].path], x.at[x.heap[j].path] = i, j
}
