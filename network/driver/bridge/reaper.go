package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// reaper removes interfaces. The kernel waits for its readers once per request, tens of milliseconds, however many
// interfaces a request removes: so everything that was asked for while one batch went is the next batch.
type reaper struct {
	host *netlink.Handle
	wake chan struct{} // capacity 1: there is something in the queue
	quit chan struct{}
	gone chan struct{} // closed when the goroutine has ended

	mu    sync.Mutex // guards queue
	queue []*removal
}

type removal struct {
	names []string
	flows flows         // to be forgotten afterwards
	err   error         // set before done is closed
	done  chan struct{} // closed when the interfaces are gone, or cannot be removed
}

func startReaper(h *netlink.Handle) *reaper {
	r := &reaper{host: h, wake: make(chan struct{}, 1), quit: make(chan struct{}), gone: make(chan struct{})}
	go r.run()
	return r
}

// stop carries out what is queued and ends.
func (r *reaper) stop() {
	close(r.quit)
	<-r.gone
}

// remove queues interfaces of the host. Those that do not exist count as removed.
func (r *reaper) remove(names ...string) *removal {
	return r.add(&removal{names: names})
}

// add queues a removal.
func (r *reaper) add(m *removal) *removal {
	m.done = make(chan struct{})
	if len(m.names) == 0 {
		close(m.done)
		return m
	}
	r.mu.Lock()
	r.queue = append(r.queue, m)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	return m
}

func (m *removal) wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *reaper) run() {
	defer close(r.gone)
	for {
		select {
		case <-r.wake:
			r.batch()
		case <-r.quit:
			r.batch()
			return
		}
	}
}

func (r *reaper) batch() {
	r.mu.Lock()
	batch := r.queue
	r.queue = nil
	r.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	// A group of our own: nobody else's interface has this number.
	group := rand.Uint32N(1<<30) + 1<<30
	var links []netlink.Link
	owner := map[int]*removal{}
	for _, m := range batch {
		for _, name := range m.names {
			link, err := r.host.LinkByName(name)
			if isNotFound(err) {
				continue
			}
			if err == nil {
				err = r.host.LinkSetGroup(link, int(group))
			}
			if err != nil && !errors.Is(err, unix.ENODEV) {
				m.err = errors.Join(m.err, fmt.Errorf("remove interface %s: %w", name, err))
				continue
			}
			links = append(links, link)
			owner[link.Attrs().Index] = m
		}
	}
	if len(links) > 0 {
		if err := r.removeGroup(group); err != nil && !errors.Is(err, unix.ENODEV) {
			slog.Debug("interfaces are removed one by one", "count", len(links), "error", err)
			for _, link := range links {
				if err := r.host.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
					m := owner[link.Attrs().Index]
					m.err = errors.Join(m.err, fmt.Errorf("remove interface %s: %w", link.Attrs().Name, err))
				}
			}
		}
	}
	for _, m := range batch {
		forgetFlows(m.flows)
		close(m.done)
	}
}

func (r *reaper) removeGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
