package kvhttp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/bcrypt"

	"stated.dev/stated/kvstore"
)

// The names that mean something by themselves.
const (
	rootName  = "root"  // the user that auth cannot be switched on without, and the role that may do everything
	guestRole = "guest" // what requests without credentials may do
)

// user is a user as the tree has it: a document at /2/users/NAME, in the form that an etcd writes.
type user struct {
	User     string   `json:"user"`
	Password string   `json:"password,omitempty"` // bcrypt's form
	Roles    []string `json:"roles"`
}

// role is a role as the tree has it: a document at /2/roles/NAME.
type role struct {
	Role        string      `json:"role"`
	Permissions permissions `json:"permissions"`
}

type permissions struct {
	KV readWrite `json:"kv"`
}

// readWrite has patterns: a path, or a beginning of paths followed by a star.
type readWrite struct {
	Read  []string `json:"read"`
	Write []string `json:"write"`
}

func (p *permissions) isEmpty() bool { return p == nil || len(p.KV.Read) == 0 && len(p.KV.Write) == 0 }

func everything() permissions { return permissions{readWrite{[]string{"/*"}, []string{"/*"}}} }

// access is what a request does to a key.
type access struct {
	writes    bool
	recursive bool // with all that is below
}

// allows says whether the role lets a request use a key.
func (r role) allows(key string, a access) bool {
	patterns := r.Permissions.KV.Read
	if a.writes {
		patterns = r.Permissions.KV.Write
	}
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, star := strings.CutSuffix(p, "*"); star {
			return strings.HasPrefix(key, prefix)
		}
		return p == key && !a.recursive
	})
}

// auth keeps users and roles in the tree and decides by them. What a request may do is read from this host's copy.
type auth struct {
	tree   Replica
	o      Options
	hashes chan struct{} // a place for each password that is hashed at the same time: hashing is slow on purpose
	known  passwords
}

func newAuth(tree Replica, o Options) *auth {
	a := &auth{tree: tree, o: o, hashes: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))}
	_, _ = rand.Read(a.known.key[:]) // it never fails
	return a
}

// enabled says whether auth is on.
func (a *auth) enabled() bool {
	found, err := a.tree.Store().Get(authSpace+"/enabled", kvstore.GetRequest{})
	return err == nil && found.Node.Value == "true"
}

// mayUseKey says whether a request may do what it asks for.
func (a *auth) mayUseKey(r *http.Request, key string, want access) bool {
	if !a.enabled() {
		return true
	}
	if r.Header.Get("Authorization") == "" {
		guest, err := a.localRole(guestRole)
		return err == nil && guest.allows(key, want)
	}
	u, ok := a.identify(r)
	if !ok {
		return false
	}
	if slices.Contains(u.Roles, rootName) {
		return true
	}
	return slices.ContainsFunc(u.Roles, func(name string) bool {
		role, err := a.localRole(name)
		return err == nil && role.allows(key, want)
	})
}

// isRoot says whether a request may change users, roles and members.
func (a *auth) isRoot(r *http.Request) bool {
	if !a.enabled() {
		return true
	}
	u, ok := a.identify(r)
	return ok && slices.Contains(u.Roles, rootName)
}

// identify returns the user whose name and password a request has.
func (a *auth) identify(r *http.Request) (user, bool) {
	name, password, ok := r.BasicAuth()
	if !ok || !isName(name) {
		return user{}, false
	}
	u, _, err := decodeUser(a.tree.Store().Get(a.path("users", name), kvstore.GetRequest{}))
	if err != nil || !a.matches(r.Context(), u.Password, password) {
		return user{}, false
	}
	return u, true
}

// matches compares a password with its hash. One that has matched before is known by a digest, for the sake of clients
// that send it with each request.
func (a *auth) matches(ctx context.Context, hash, password string) bool {
	digest := a.known.digest(hash, password)
	if a.known.has(digest) {
		return true
	}
	if a.turn(ctx) != nil {
		return false
	}
	defer func() { <-a.hashes }()
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) != nil {
		return false
	}
	a.known.add(digest)
	return true
}

// turn waits for a place to hash in.
func (a *auth) turn(ctx context.Context) error {
	select {
	case a.hashes <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// passwords are digests of hashes with the passwords that match them.
type passwords struct {
	key [32]byte // makes the digests of no use elsewhere

	mu   sync.Mutex // guards seen
	seen map[[sha256.Size]byte]struct{}
}

const maxKnown = 1024

func (p *passwords) digest(hash, password string) (d [sha256.Size]byte) {
	m := hmac.New(sha256.New, p.key[:])
	fmt.Fprintf(m, "%d %s%s", len(hash), hash, password)
	m.Sum(d[:0])
	return d
}

func (p *passwords) has(d [sha256.Size]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.seen[d]
	return ok
}

func (p *passwords) add(d [sha256.Size]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil || len(p.seen) >= maxKnown {
		p.seen = map[[sha256.Size]byte]struct{}{}
	}
	p.seen[d] = struct{}{}
}

func (a *auth) path(kind, name string) string { return authSpace + "/" + kind + "/" + name }

// bounded gives a change of users or roles the time of any request.
func (a *auth) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.o.RequestTimeout)
}

func (a *auth) get(ctx context.Context, path string) (kvstore.Found, error) {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	return a.tree.Get(ctx, path, kvstore.GetRequest{Sorted: true})
}

func (a *auth) do(ctx context.Context, c kvstore.Command) error {
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	_, err := a.tree.Do(ctx, c)
	return err
}

func code(err error) int {
	var e *kvstore.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// decode reads a document of the tree, and returns the index of its last change.
func decode(found kvstore.Found, err error, v any) (uint64, error) {
	if err != nil {
		return 0, err
	}
	if found.Node.Dir {
		return 0, fmt.Errorf("%s is a directory", found.Node.Key)
	}
	if err := json.Unmarshal([]byte(found.Node.Value), v); err != nil {
		return 0, fmt.Errorf("read %s: %w", found.Node.Key, err)
	}
	return found.Node.ModifiedIndex, nil
}

// decodeUser reads a user. Root has the role root, whatever is written down.
func decodeUser(found kvstore.Found, err error) (user, uint64, error) {
	var u user
	index, err := decode(found, err, &u)
	if err == nil && u.User == rootName && !slices.Contains(u.Roles, rootName) {
		u.Roles = append(u.Roles, rootName)
	}
	return u, index, err
}

func (a *auth) userAt(ctx context.Context, name string) (user, uint64, error) {
	u, index, err := decodeUser(a.get(ctx, a.path("users", name)))
	if code(err) == kvstore.CodeKeyNotFound {
		err = refuse(http.StatusNotFound, "auth: User %s does not exist.", name)
	}
	return u, index, err
}

func (a *auth) user(ctx context.Context, name string) (user, error) {
	u, _, err := a.userAt(ctx, name)
	return u, err
}

// names lists what is below a directory of the tree, in order.
func (a *auth) names(ctx context.Context, kind string) ([]string, error) {
	found, err := a.get(ctx, authSpace+"/"+kind)
	if code(err) == kvstore.CodeKeyNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range found.Node.Nodes {
		names = append(names, path.Base(n.Key))
	}
	return names, nil
}

func (a *auth) users(ctx context.Context) ([]user, error) {
	names, err := a.names(ctx, "users")
	if err != nil {
		return nil, err
	}
	var all []user
	for _, name := range names {
		switch u, err := a.user(ctx, name); {
		case isNotFound(err): // it was deleted meanwhile
		case err != nil:
			return nil, err
		default:
			all = append(all, u)
		}
	}
	return all, nil
}

func (a *auth) hash(ctx context.Context, password string) (string, error) {
	if err := a.turn(ctx); err != nil {
		return "", err
	}
	defer func() { <-a.hashes }()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), a.o.PasswordCost)
	if errors.Is(err, bcrypt.ErrPasswordTooLong) {
		return "", refuse(http.StatusBadRequest, "auth: A password has at most 72 bytes")
	}
	return string(hash), err
}

func (a *auth) createUser(ctx context.Context, in userRequest) (user, error) {
	if in.Password == "" {
		return user{}, refuse(http.StatusBadRequest, "auth: Cannot create user %s with an empty password", in.User)
	}
	hash, err := a.hash(ctx, in.Password)
	if err != nil {
		return user{}, err
	}
	u := user{in.User, hash, in.Roles}
	if u.User == rootName && !slices.Contains(u.Roles, rootName) {
		u.Roles = append(u.Roles, rootName)
	}
	err = a.do(ctx, kvstore.Command{Op: kvstore.OpCreate, Path: a.path("users", u.User), Value: string(encode(u))})
	if code(err) == kvstore.CodeKeyExists {
		err = refuse(http.StatusConflict, "auth: User %s already exists.", u.User)
	}
	return u, err
}

// change writes a document that was read at an index; somebody else's change in between makes it fail with code 101.
func (a *auth) change(ctx context.Context, path string, index uint64, v any) error {
	return a.do(ctx, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: path, PrevIndex: index, Value: string(encode(v))})
}

// retry repeats a change until nobody else made one between its read and its write.
func retry[T any](ctx context.Context, change func() (T, error)) (T, error) {
	for {
		v, err := change()
		if c := code(err); c != kvstore.CodeCompareFailed && c != kvstore.CodeKeyNotFound || ctx.Err() != nil {
			return v, err
		}
	}
}

func (a *auth) updateUser(ctx context.Context, in userRequest) (user, error) {
	return retry(ctx, func() (user, error) {
		old, index, err := a.userAt(ctx, in.User)
		if err != nil {
			return user{}, err
		}
		u := old
		// Also when nothing else changes, a user without roles has a list of none afterwards.
		u.Roles = append([]string{}, old.Roles...)
		for _, name := range in.Grant {
			if slices.Contains(u.Roles, name) {
				return user{}, refuse(http.StatusConflict, "auth: Granting duplicate role %s for user %s", name, in.User)
			}
			u.Roles = append(u.Roles, name)
		}
		for _, name := range in.Revoke {
			at := slices.Index(u.Roles, name)
			if at < 0 {
				return user{}, refuse(http.StatusConflict, "auth: Revoking ungranted role %s for user %s", name, in.User)
			}
			u.Roles = slices.Delete(u.Roles, at, at+1)
		}
		slices.Sort(u.Roles)
		if in.Password == "" && same(u.Roles, old.Roles) {
			return user{}, refuse(http.StatusBadRequest, "auth: User not updated. Use grant/revoke/password to update the user.")
		}
		if in.Password != "" {
			if u.Password, err = a.hash(ctx, in.Password); err != nil {
				return user{}, err
			}
		}
		return u, a.change(ctx, a.path("users", in.User), index, u)
	})
}

// same compares two lists. Null, which was never changed, is not the empty list.
func same(a, b []string) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

func (a *auth) deleteUser(ctx context.Context, name string) error {
	if name == rootName && a.enabled() {
		return refuse(http.StatusForbidden, "auth: Cannot delete root user while auth is enabled.")
	}
	err := a.do(ctx, kvstore.Command{Op: kvstore.OpDelete, Path: a.path("users", name)})
	if code(err) == kvstore.CodeKeyNotFound {
		return refuse(http.StatusNotFound, "auth: User %s does not exist", name)
	}
	return err
}

func noRole(name string) error {
	return refuse(http.StatusNotFound, "auth: Role %s does not exist.", name)
}

// isName says whether a user or a role can have this name. Users may have roles of any name, which must not lead out of the directory
// of roles.
func isName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.Contains(name, "/")
}

// localRole is a role other than root as this host's copy has it.
func (a *auth) localRole(name string) (role, error) {
	var r role
	if !isName(name) {
		return r, noRole(name)
	}
	event, err := a.tree.Store().Get(a.path("roles", name), kvstore.GetRequest{})
	_, err = decode(event, err, &r)
	return r, err
}

func (a *auth) roleAt(ctx context.Context, name string) (role, uint64, error) {
	if name == rootName {
		return role{rootName, everything()}, 0, nil
	}
	var r role
	if !isName(name) {
		return r, 0, noRole(name)
	}
	event, err := a.get(ctx, a.path("roles", name))
	index, err := decode(event, err, &r)
	if code(err) == kvstore.CodeKeyNotFound {
		err = noRole(name)
	}
	return r, index, err
}

func (a *auth) role(ctx context.Context, name string) (role, error) {
	r, _, err := a.roleAt(ctx, name)
	return r, err
}

func (a *auth) roles(ctx context.Context) ([]role, error) {
	names, err := a.names(ctx, "roles")
	if err != nil {
		return nil, err
	}
	names = append(names, rootName)
	slices.Sort(names)
	var all []role
	for _, name := range slices.Compact(names) {
		switch r, err := a.role(ctx, name); {
		case isNotFound(err): // it was deleted meanwhile
		case err != nil:
			return nil, err
		default:
			all = append(all, r)
		}
	}
	return all, nil
}

func rootIsFixed(name string) error {
	if name == rootName {
		return refuse(http.StatusForbidden, "auth: Cannot modify role root: is root role.")
	}
	return nil
}

func (a *auth) createRole(ctx context.Context, r role) (role, error) {
	if err := rootIsFixed(r.Role); err != nil {
		return role{}, err
	}
	err := a.do(ctx, kvstore.Command{Op: kvstore.OpCreate, Path: a.path("roles", r.Role), Value: string(encode(r))})
	if code(err) == kvstore.CodeKeyExists {
		err = refuse(http.StatusConflict, "auth: Role %s already exists.", r.Role)
	}
	return r, err
}

func (a *auth) updateRole(ctx context.Context, in roleRequest) (role, error) {
	if err := rootIsFixed(in.Role); err != nil {
		return role{}, err
	}
	grant, revoke := readWrite{}, readWrite{}
	if in.Grant != nil {
		grant = in.Grant.KV
	}
	if in.Revoke != nil {
		revoke = in.Revoke.KV
	}
	return retry(ctx, func() (role, error) {
		old, index, err := a.roleAt(ctx, in.Role)
		if err != nil {
			return role{}, err
		}
		r := old
		if r.Permissions.KV.Read, err = merge("read", old.Permissions.KV.Read, grant.Read, revoke.Read); err != nil {
			return role{}, err
		}
		if r.Permissions.KV.Write, err = merge("write", old.Permissions.KV.Write, grant.Write, revoke.Write); err != nil {
			return role{}, err
		}
		if same(r.Permissions.KV.Read, old.Permissions.KV.Read) && same(r.Permissions.KV.Write, old.Permissions.KV.Write) {
			return role{}, refuse(http.StatusBadRequest, "auth: Role not updated. Use grant/revoke to update the role.")
		}
		return r, a.change(ctx, a.path("roles", in.Role), index, r)
	})
}

// merge adds patterns and takes some away. The result is sorted, has each once, and is not nil.
func merge(kind string, old, grant, revoke []string) ([]string, error) {
	out := append([]string{}, old...)
	for _, p := range grant {
		if slices.Contains(out, p) {
			return nil, refuse(http.StatusConflict, "auth: Granting duplicate %s permission %s", kind, p)
		}
		out = append(out, p)
	}
	out = slices.DeleteFunc(out, func(p string) bool { return slices.Contains(revoke, p) })
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (a *auth) deleteRole(ctx context.Context, name string) error {
	if err := rootIsFixed(name); err != nil {
		return err
	}
	err := a.do(ctx, kvstore.Command{Op: kvstore.OpDelete, Path: a.path("roles", name)})
	if code(err) == kvstore.CodeKeyNotFound {
		return refuse(http.StatusNotFound, "auth: Role %s doesn't exist.", name)
	}
	return err
}

// enable switches auth on. Guests may do everything until their role is changed.
func (a *auth) enable(ctx context.Context) error {
	if a.enabled() {
		return refuse(http.StatusConflict, "auth: already enabled")
	}
	switch _, err := a.user(ctx, rootName); {
	case isNotFound(err):
		return refuse(http.StatusConflict, "auth: No root user available, please create one")
	case err != nil:
		return err
	}
	_, err := a.createRole(ctx, role{guestRole, everything()})
	var e *statusError
	if err != nil && !(errors.As(err, &e) && e.status == http.StatusConflict) {
		return err
	}
	return a.do(ctx, kvstore.Command{Op: kvstore.OpSet, Path: authSpace + "/enabled", Value: "true"})
}

func (a *auth) disable(ctx context.Context) error {
	if !a.enabled() {
		return refuse(http.StatusConflict, "auth: already disabled")
	}
	return a.do(ctx, kvstore.Command{Op: kvstore.OpSet, Path: authSpace + "/enabled", Value: "false"})
}
