package graphdriver

import "sync"

// Mounts counts the users of a driver's mounts. The first and the last user of each do the work, and nobody else
// waits for it but those who want the same one.
type Mounts struct {
	mu     sync.Mutex // guards byPath and the holders of each entry
	byPath map[string]*mountCount
}

type mountCount struct {
	holders int // callers that are in here or wait to be

	mu    sync.Mutex // held over the work; taken without Mounts.mu
	known bool       // whether a mount of a process before this one was looked for
	count int
}

// Acquire adds a user of the mount at path. found says whether it is mounted already, which is asked once, and a
// mount that is found counts as one user. mount is called for the first user. When it fails nothing was counted.
func (m *Mounts) Acquire(path string, found func() bool, mount func() error) error {
	c := m.enter(path)
	defer m.leave(path, c)
	c.look(found)
	if c.count == 0 {
		if err := mount(); err != nil {
			return err
		}
	}
	c.count++
	return nil
}

// Release takes one user away and calls unmount for the last. When unmount fails the user is still counted.
func (m *Mounts) Release(path string, found func() bool, unmount func() error) error {
	c := m.enter(path)
	defer m.leave(path, c)
	c.look(found)
	switch c.count {
	case 0:
		return nil
	case 1:
		if err := unmount(); err != nil {
			return err
		}
	}
	c.count--
	return nil
}

// Count returns the number of users.
func (m *Mounts) Count(path string, found func() bool) int {
	c := m.enter(path)
	defer m.leave(path, c)
	c.look(found)
	return c.count
}

func (c *mountCount) look(found func() bool) {
	if !c.known {
		c.known = true
		if found() {
			c.count = 1
		}
	}
}

func (m *Mounts) enter(path string) *mountCount {
	m.mu.Lock()
	if m.byPath == nil {
		m.byPath = map[string]*mountCount{}
	}
	c := m.byPath[path]
	if c == nil {
		c = &mountCount{}
		m.byPath[path] = c
	}
	c.holders++
	m.mu.Unlock()
	c.mu.Lock()
	return c
}

func (m *Mounts) leave(path string, c *mountCount) {
	c.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	c.holders--
	if c.holders == 0 && c.count == 0 { // nobody else can be changing it
		delete(m.byPath, path) // the next user looks again, which is right then too: nothing is mounted
	}
}
