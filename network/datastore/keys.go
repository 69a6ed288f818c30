package datastore

import (
	"strings"

	"github.com/containerd/errdefs"
)

// RootChain is what every key of the network controller begins with, after the prefix of a remote store.
const RootChain = "docker/network/v1.0"

// Keyspace makes and takes apart the keys of one store. The zero value is the local scope's; a remote store puts
// the path of its address in front. Two stores with different prefixes can be open at once.
type Keyspace struct {
	Prefix string
}

// Root returns the common beginning of all keys.
func (k Keyspace) Root() string {
	if p := strings.Trim(k.Prefix, "/"); p != "" {
		return p + "/" + RootChain + "/"
	}
	return RootChain + "/"
}

// Key joins parts below the root chain; a key ends with a slash.
func (k Keyspace) Key(parts ...string) string {
	var b strings.Builder
	b.WriteString(k.Root())
	for _, p := range parts {
		b.WriteString(p)
		b.WriteByte('/')
	}
	return b.String()
}

// Parse returns the parts of key below the root chain.
func (k Keyspace) Parse(key string) ([]string, error) {
	rest, ok := strings.CutPrefix(key, k.Root())
	rest = strings.TrimSuffix(rest, "/")
	if !ok || rest == "" {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid Key : " + key)
	}
	return strings.Split(rest, "/"), nil
}
