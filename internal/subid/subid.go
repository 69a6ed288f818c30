// Package subid finds the ids that the users of containers have on the host: the ranges that /etc/subuid and
// /etc/subgid give to the user of --userns-remap.
//
// It reads those files, writes nothing and holds no locks.
package subid

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
)

// Default is the setting that stands for the user DefaultUser.
const (
	Default     = "default"
	DefaultUser = "dockremap"
)

// Files are where a host records its users and their ranges.
type Files struct {
	Passwd, Group, SubUID, SubGID string
	// Ask looks a key up in the database "passwd" or "group" when the file does not have it, and returns lines in the
	// file's form. Nil: there is nobody to ask.
	Ask func(database, key string) ([]byte, error)
}

// Host returns the files of this host. Users of directory services are found with getent.
func Host() Files {
	return Files{
		Passwd: "/etc/passwd", Group: "/etc/group", SubUID: "/etc/subuid", SubGID: "/etc/subgid",
		Ask: func(database, key string) ([]byte, error) { return exec.Command("getent", database, key).Output() },
	}
}

// Remap is what a --userns-remap means.
type Remap struct {
	User, Group string
	// Mapping is empty for root, who cannot be remapped to itself.
	Mapping user.IdentityMapping
}

// Remap resolves a setting: "default", a user's name or id, or one with a group's after a colon. As with dockerd the
// group has to exist and is otherwise without effect: both maps are the user's.
func (f Files) Remap(setting string) (Remap, error) {
	owner, group, hasGroup := strings.Cut(setting, ":")
	if strings.Contains(group, ":") || owner == "" || hasGroup && group == "" {
		return Remap{}, fmt.Errorf("invalid user/group specification %q: want default, user, user:group, uid or uid:gid", setting)
	}
	name := owner
	if owner == Default {
		name = DefaultUser
	}
	u, err := f.user(name)
	if err != nil {
		if owner == Default && errors.Is(err, errUnknown) {
			return Remap{}, f.noDefault()
		}
		return Remap{}, err
	}
	if !hasGroup {
		group = name // a number stands for the group of that number
	}
	g, err := f.group(group)
	if err != nil {
		return Remap{}, err
	}
	r := Remap{User: u.Name, Group: g.Name}
	if u.Name == "root" || u.Uid == 0 {
		return r, nil
	}
	if r.Mapping.UIDMaps, err = f.mapping(f.SubUID, u, "--add-subuids"); err != nil {
		return Remap{}, err
	}
	r.Mapping.GIDMaps, err = f.mapping(f.SubGID, u, "--add-subgids")
	return r, err
}

// errUnknown says that there is no such user or group.
var errUnknown = errors.New("it does not exist")

// user looks a user up by name, or by id when the name is a number.
func (f Files) user(key string) (user.User, error) {
	id, err := strconv.ParseInt(key, 10, 32)
	byID := err == nil
	list, err := lookup(f, "passwd", f.Passwd, key, func(text []byte) ([]user.User, error) {
		return user.ParsePasswdFilter(bytes.NewReader(text), func(u user.User) bool {
			return byID && int64(u.Uid) == id || !byID && u.Name == key
		})
	})
	if err != nil {
		return user.User{}, fmt.Errorf("look up the user %s in %s: %w (name another one, or make it with useradd)", key, f.Passwd, err)
	}
	return list[0], nil
}

// group looks a group up by name, or by id when the name is a number.
func (f Files) group(key string) (user.Group, error) {
	id, err := strconv.ParseInt(key, 10, 32)
	byID := err == nil
	list, err := lookup(f, "group", f.Group, key, func(text []byte) ([]user.Group, error) {
		return user.ParseGroupFilter(bytes.NewReader(text), func(g user.Group) bool {
			return byID && int64(g.Gid) == id || !byID && g.Name == key
		})
	})
	if err != nil {
		return user.Group{}, fmt.Errorf("look up the group %s in %s: %w (name another one, or make it with groupadd)", key, f.Group, err)
	}
	return list[0], nil
}

// lookup returns what parse finds in the file, or else in the answer to a question; at least one entry.
func lookup[T any](f Files, database, path, key string, parse func([]byte) ([]T, error)) ([]T, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	list, err := parse(text)
	if err == nil && len(list) == 0 && f.Ask != nil {
		if text, err := f.Ask(database, key); err == nil { // an error says that nobody knows it either
			list, _ = parse(text) // what is no line of the database is no entry
		}
	}
	if err == nil && len(list) == 0 {
		err = errUnknown
	}
	return list, err
}

// noDefault says how the default user is made. The daemon leaves that to the administrator.
func (f Files) noDefault() error {
	uids, err := f.free(f.SubUID)
	if err != nil {
		return err
	}
	gids, err := f.free(f.SubGID)
	if err != nil {
		return err
	}
	return fmt.Errorf("the user %s, for whom %q stands, does not exist: make it with: "+
		"useradd --system --user-group --no-create-home --shell /bin/false %[1]s && usermod --add-subuids %[3]s --add-subgids %[4]s %[1]s",
		DefaultUser, Default, uids, gids)
}

// mapping maps the ids from 0 on to the user's ranges in the file, one after the other.
func (f Files) mapping(path string, u user.User, flag string) ([]user.IDMap, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	ranges, err := Parse(text, u.Name, strconv.Itoa(u.Uid))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(ranges) == 0 {
		free, err := f.free(path)
		if err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%s has no range for the user %s: add one with: usermod %s %s %[2]s", path, u.Name, flag, free)
	}
	maps, err := Map(ranges)
	if err != nil {
		return nil, fmt.Errorf("%s: the ranges of the user %s: %w", path, u.Name, err)
	}
	return maps, nil
}

// read reads a file of ranges; one that is not there is empty.
func read(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// First and size of the ranges that are proposed, as useradd and dockerd choose them.
const (
	freeFrom = 100000
	freeSize = 65536
)

// free returns a range, "FIRST-LAST", that begins after all those in the file.
func (f Files) free(path string) (string, error) {
	text, err := read(path)
	if err != nil {
		return "", err
	}
	first := uint64(freeFrom)
	for line := range strings.Lines(string(text)) {
		if e, err := parseLine(line); err == nil {
			first = max(first, uint64(e.First)+uint64(e.Count))
		}
	}
	return fmt.Sprintf("%d-%d", first, first+freeSize-1), nil
}
