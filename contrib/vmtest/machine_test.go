package vmtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

// machineEnv holds the configuration of a machine: a process that is the init of namespaces of its own, mounts the
// disk, runs a daemon on it and works with it until it is killed, and everything in its namespaces with it.
const machineEnv = "STATED_MACHINE"

// machine is a host from its boot to its end.
type machine struct {
	Device string // with the data root
	Binary string // the daemon
	Image  string // a tar to import when the disk is new
	Log    string // of the daemon
	BootID string // unless it is the kernel's own
	Before disk   // what must be found
	Work   bool   // go on with operations once that is checked
}

// disk is what may be on a disk after the power was cut: for each container the states that are right.
type disk map[string][]string

// States of a container after a boot. Containers restart unless they were stopped.
const (
	absent  = "absent"
	created = "created"
	running = "running"
	stopped = "exited"
)

// A note is what a machine tells, one a line.
type note struct {
	Failed    string            `json:",omitempty"` // what is wrong
	Found     map[string]string `json:",omitempty"` // the containers' states when all was checked
	Name      string            `json:",omitempty"` // a container
	Allowed   []string          `json:",omitempty"` // the states it may have from now on: two while an operation runs
	Operation string            `json:",omitempty"` // that has been acknowledged
}

const (
	mountPoint = "/mnt"
	dataRoot   = mountPoint + "/root"
	execRoot   = "/run/stated-machine"
	socketPath = execRoot + "/api.sock"
	counter    = "counter" // a container that counts in a file on the volume of this name
)

// boot is the machine's life. It returns its exit code.
func (m *machine) boot() int {
	out := json.NewEncoder(os.Stdout)
	var mu sync.Mutex // guards out
	tell := func(n note) {
		mu.Lock()
		defer mu.Unlock()
		if err := out.Encode(n); err != nil {
			os.Exit(1) // nobody listens any more
		}
	}
	if err := m.up(); err != nil {
		tell(note{Failed: err.Error()})
		return 1
	}
	found, err := m.check()
	if err != nil {
		tell(note{Failed: err.Error()})
		return 1
	}
	tell(note{Found: found})
	if !m.Work {
		return 0
	}
	var workers sync.WaitGroup
	for i := range 3 {
		workers.Go(func() {
			if err := work(i, found, tell); err != nil {
				tell(note{Failed: err.Error()})
			}
		})
	}
	workers.Wait()
	return 1
}

// up mounts the disk and starts the daemon.
func (m *machine) up() error {
	if err := os.MkdirAll(execRoot, 0o755); err != nil {
		return err
	}
	err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("tmpfs", execRoot, "tmpfs", 0, ""),
		m.setBootID(),
		unix.Mount(m.Device, mountPoint, "ext4", 0, ""),
		exec.Command("ip", "link", "set", "lo", "up").Run(),
	)
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	log, err := os.OpenFile(m.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(m.Binary, "daemon", "--data-root", dataRoot, "--exec-root", execRoot+"/exec", "-H", "unix://"+socketPath)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Minute)
	for call(http.MethodGet, "/_ping", nil, nil) != nil {
		if time.Now().After(deadline) {
			return errors.New("the daemon does not serve")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := os.Stat(filepath.Join(mountPoint, "ready")); err == nil {
		return nil
	}
	return m.install()
}

// setBootID gives this boot an id of its own when it shares the kernel with others.
func (m *machine) setBootID() error {
	if m.BootID == "" {
		return nil
	}
	path := execRoot + "/boot-id"
	if err := os.WriteFile(path, []byte(m.BootID+"\n"), 0o444); err != nil {
		return err
	}
	return unix.Mount(path, "/proc/sys/kernel/random/boot_id", "", unix.MS_BIND, "")
}

// install gives a new disk its image, its volume and its counter.
func (m *machine) install() error {
	tar, err := os.ReadFile(m.Image)
	if err != nil {
		return err
	}
	if err := call(http.MethodPost, "/images/create?fromSrc=-&repo=busybox&changes="+url.QueryEscape("ENV PATH=/bin"), tar, nil); err != nil {
		return err
	}
	count := "n=$(cat /v/n 2>/dev/null || echo 0); while :; do n=$((n+1)); echo $n >/v/new; mv /v/new /v/n; sleep 0.05; done"
	body := fmt.Sprintf(`{"Image":"busybox:latest","Cmd":["sh","-c",%q],"HostConfig":{"Binds":["counter:/v"],"RestartPolicy":{"Name":"always"},"NetworkMode":"none"}}`, count)
	if err := call(http.MethodPost, "/containers/create?name="+counter, []byte(body), nil); err != nil {
		return err
	}
	if err := call(http.MethodPost, "/containers/"+counter+"/start", nil, nil); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(mountPoint, "ready"), nil, 0o600); err != nil {
		return err
	}
	unix.Sync()
	return nil
}

type summary struct {
	ID    string `json:"Id"`
	Names []string
	State string
}

// list returns the containers by name.
func list() (map[string]summary, error) {
	var all []summary
	if err := call(http.MethodGet, "/containers/json?all=1", nil, &all); err != nil {
		return nil, err
	}
	byName := map[string]summary{}
	for _, c := range all {
		if len(c.Names) == 0 {
			return nil, fmt.Errorf("container %s has no name", c.ID)
		}
		byName[strings.TrimPrefix(c.Names[0], "/")] = c
	}
	return byName, nil
}

// check compares what is there with what must be there, and looks for what nobody owns.
func (m *machine) check() (map[string]string, error) {
	var problems []error
	var containers map[string]summary
	deadline := time.Now().Add(40 * time.Second)
	for { // restart policies are applied while the daemon serves already
		var err error
		if containers, err = list(); err != nil {
			return nil, err
		}
		if problems = compare(m.Before, containers); len(problems) == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	problems = append(problems, checkCounter(containers[counter].ID)...)
	problems = append(problems, checkFiles(containers)...)
	found := map[string]string{}
	for name, c := range containers {
		found[name] = c.State
		// What is there is there wholly.
		if err := call(http.MethodGet, "/containers/"+name+"/json?size=1", nil, nil); err != nil {
			problems = append(problems, err)
		}
	}
	return found, errors.Join(problems...)
}

func compare(before disk, containers map[string]summary) (problems []error) {
	for name, allowed := range before {
		state := absent
		if c, ok := containers[name]; ok {
			state = c.State
		}
		if !slices.Contains(allowed, state) {
			problems = append(problems, fmt.Errorf("container %s is %s, want %v", name, state, allowed))
		}
	}
	for name := range containers {
		if _, ok := before[name]; !ok && name != counter {
			problems = append(problems, fmt.Errorf("nobody created container %s", name))
		}
	}
	return problems
}

// checkCounter sees that the counter goes on, and that its volume was mounted for it with an event.
func checkCounter(id string) (problems []error) {
	read := func() int {
		data, _ := os.ReadFile(dataRoot + "/volumes/counter/_data/n") // nothing counts as 0
		n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		return n
	}
	first := read()
	deadline := time.Now().Add(30 * time.Second)
	for read() <= first {
		if time.Now().After(deadline) {
			return []error{fmt.Errorf("the counter stays at %d", first)}
		}
		time.Sleep(20 * time.Millisecond)
	}
	var events bytes.Buffer
	filters := url.QueryEscape(`{"type":["volume"],"event":["mount"]}`)
	if err := call(http.MethodGet, fmt.Sprintf("/events?since=1&until=%d&filters=%s", time.Now().Unix()+1, filters), nil, &events); err != nil {
		return []error{err}
	}
	if !strings.Contains(events.String(), id) {
		problems = append(problems, fmt.Errorf("no mount event of the counter's volume: %s", events.String()))
	}
	return problems
}

// checkFiles compares the data root with the containers.
func checkFiles(containers map[string]summary) (problems []error) {
	ids := []string{}
	for _, c := range containers {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	for _, dir := range []string{"containers", "image/overlay2/layerdb/mounts"} {
		if names := entries(filepath.Join(dataRoot, dir)); !slices.Equal(names, ids) {
			problems = append(problems, fmt.Errorf("%s has %v, want %v", dir, names, ids))
		}
	}
	layers := slices.DeleteFunc(entries(dataRoot+"/overlay2"), func(name string) bool { return name == "l" })
	// One of the image, and an init and a writable one for each container.
	if want := 1 + 2*len(ids); len(layers) != want {
		problems = append(problems, fmt.Errorf("overlay2 has %d layers, want %d: %v", len(layers), want, layers))
	}
	if links := entries(dataRoot + "/overlay2/l"); len(links) != len(layers) {
		problems = append(problems, fmt.Errorf("overlay2 has %d links for %d layers", len(links), len(layers)))
	}
	if names := entries(dataRoot + "/tmp"); len(names) > 0 {
		problems = append(problems, fmt.Errorf("tmp has %v", names))
	}
	return problems
}

func entries(dir string) []string {
	list, _ := os.ReadDir(dir) // what is missing is reported as a difference
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// work does operations on containers of its own, and tells before and after each which states they may have.
func work(number int, found map[string]string, tell func(note)) error {
	mine := map[string]string{}
	for name, state := range found {
		if strings.HasPrefix(name, fmt.Sprintf("w%d-", number)) {
			mine[name] = state
		}
	}
	network := "none"
	if number == 0 {
		network = "bridge"
	}
	for {
		name := fmt.Sprintf("w%d-%d", number, rand.IntN(2))
		state := mine[name]
		var next, method, path, operation string
		var body []byte
		switch {
		case state == "" || state == absent:
			state, next, operation = absent, created, "create"
			method, path = http.MethodPost, "/containers/create?name="+name
			body = fmt.Appendf(nil, `{"Image":"busybox:latest","Cmd":["sleep","1000000"],"HostConfig":{"RestartPolicy":{"Name":"unless-stopped"},"NetworkMode":%q}}`, network)
		case state == running:
			next, method, path, operation = stopped, http.MethodPost, "/containers/"+name+"/stop?t=0", "stop"
		case state == created, rand.IntN(2) == 0:
			next, method, path, operation = running, http.MethodPost, "/containers/"+name+"/start", "start"
		default:
			next, method, path, operation = absent, http.MethodDelete, "/containers/"+name, "remove"
		}
		tell(note{Name: name, Allowed: []string{state, next}})
		if err := call(method, path, body, nil); err != nil {
			return fmt.Errorf("%s %s: %w", operation, name, err)
		}
		mine[name] = next
		tell(note{Name: name, Allowed: []string{next}, Operation: operation})
	}
}

// call makes a request of the daemon. The answer goes to into: a pointer to decode JSON to, or a buffer.
func call(method, path string, body []byte, into any) error {
	client := scratch.Client(socketPath)
	client.Timeout = 2 * time.Minute
	req, err := http.NewRequest(method, "http://stated"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 400 {
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data)
	}
	switch into := into.(type) {
	case nil:
		return nil
	case *bytes.Buffer:
		into.Write(data)
		return nil
	}
	return json.Unmarshal(data, into)
}
