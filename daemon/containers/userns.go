package containers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/moby/sys/user"

	"stated.dev/stated/internal/atomicfile"
)

// remapped says whether the daemon remaps users and the container takes part.
func (s *Service) remapped(r *Record) bool {
	return len(s.cfg.Host.UIDMaps) > 0 && r.HostConfig.UsernsMode.IsPrivate()
}

// ownsNetwork says whether the container's network namespace is owned by its user namespace, without which it could
// neither mount sysfs nor use its interfaces as root. Such a one is made by the runtime together with the other
// namespaces, and is given its interfaces between the container's creation and its start.
func (s *Service) ownsNetwork(r *Record) bool {
	return s.remapped(r) && !r.HostConfig.NetworkMode.IsHost() && !r.HostConfig.NetworkMode.IsContainer()
}

// peerUsers is the user namespace of the container whose other namespace is to be joined, which goes with it; empty for
// a container without remapped users.
func (s *Service) peerUsers(r, peer *Record) string {
	if !s.remapped(r) {
		return ""
	}
	return processNamespace(peer.State.Pid, "user")
}

// processNamespace is the path of a process's namespace.
func processNamespace(pid int, kind string) string {
	return fmt.Sprintf("/proc/%d/ns/%s", pid, kind)
}

// passableDir makes a directory of the daemon's that remapped users may go through but not list.
func (s *Service) passableDir(dir string) error {
	return user.MkdirAllAndChown(dir, 0o710, os.Getuid(), s.cfg.GID)
}

// fileWriter puts text into one of a container's network files.
type fileWriter func(path string, text []byte) error

// fileWriter returns how the container's network files are written: each is replaced, unless it is mounted already.
// They belong to root as containers see it.
func (s *Service) fileWriter(r *Record) fileWriter {
	put := func(path string, text []byte) error { return atomicfile.WriteNoSync(path, text, 0o644) }
	if s.ownsNetwork(r) {
		put = func(path string, text []byte) error { return os.WriteFile(path, text, 0o644) }
	}
	return func(path string, text []byte) error {
		if err := put(path, text); err != nil {
			return err
		}
		return s.give(path)
	}
}

// give gives a file to root as containers see it.
func (s *Service) give(path string) error {
	if s.cfg.UID == 0 && s.cfg.GID == 0 {
		return nil
	}
	return os.Chown(path, s.cfg.UID, s.cfg.GID)
}

// touchNetworkFiles makes the network files that are missing, to be mounted before it is known what is in them.
func (s *Service) touchNetworkFiles(r *Record, files networkFiles) error {
	for path, file := range map[string]networkFile{r.HostnamePath: files.hostname, r.HostsPath: files.hosts, r.ResolvConfPath: files.resolvConf} {
		if file.foreign {
			continue
		}
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err = os.Remove(path + ".hash"); err == nil || errors.Is(err, fs.ErrNotExist) { // of a lost resolv.conf
				err = os.WriteFile(path, nil, 0o644)
			}
		}
		if err != nil {
			return fmt.Errorf("make the network files: %w", err)
		}
	}
	return nil
}
