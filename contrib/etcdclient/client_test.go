package etcdclient_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v2"

	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/kvstore/http/keystest"
	"stated.dev/stated/kvstore/http/servetest"
)

// TestClient runs the same calls against a real etcd and against stated.
func TestClient(t *testing.T) {
	for name, start := range map[string]func(t *testing.T) string{
		"etcd":   func(t *testing.T) string { return keystest.Etcd(t) },
		"stated": func(t *testing.T) string { return servetest.Start(t, kvhttp.Options{PasswordCost: 4}).URL },
	} {
		t.Run(name, func(t *testing.T) {
			u := user{t, start(t)}
			u.keys()
			u.watch()
			u.members()
			u.auth()
		})
	}
}

type user struct {
	*testing.T
	url string
}

func (u user) client(name, password string) client.Client {
	u.Helper()
	c, err := client.New(client.Config{Endpoints: []string{u.url}, Username: name, Password: password, HeaderTimeoutPerRequest: 20 * time.Second})
	if err != nil {
		u.Fatal(err)
	}
	return c
}

func (u user) ok(what string, err error) {
	u.Helper()
	if err != nil {
		u.Fatalf("%s: %v", what, err)
	}
}

// fails wants an error of the API with a code.
func (u user) fails(what string, err error, code int) {
	u.Helper()
	var e client.Error
	if !errors.As(err, &e) || e.Code != code {
		u.Errorf("%s: %v, want code %d", what, err, code)
	}
}

func (u user) keys() {
	ctx := u.Context()
	c := u.client("", "")
	u.ok("sync", c.Sync(ctx))
	if list := c.Endpoints(); len(list) != 1 || list[0] != u.url {
		u.Errorf("endpoints after sync: %v, want %s", list, u.url)
	}
	version, err := c.GetVersion(ctx)
	u.ok("version", err)
	if version.Server != "3.4.23" {
		u.Errorf("version %+v", version)
	}
	k := client.NewKeysAPI(c)
	first, err := k.Set(ctx, "/a/f", "1", nil)
	u.ok("set", err)
	if first.Action != "set" || first.Node.Key != "/a/f" || first.Node.Value != "1" || first.PrevNode != nil {
		u.Errorf("set: %+v", first)
	}
	_, err = k.Create(ctx, "/a/f", "2")
	u.fails("create", err, client.ErrorCodeNodeExist)
	_, err = k.Update(ctx, "/a/none", "2")
	u.fails("update", err, client.ErrorCodeKeyNotFound)
	_, err = k.Set(ctx, "/a/f", "2", &client.SetOptions{PrevValue: "x"})
	u.fails("compare and swap", err, client.ErrorCodeTestFailed)
	second, err := k.Set(ctx, "/a/f", "2", &client.SetOptions{PrevIndex: first.Node.ModifiedIndex, PrevValue: "1", TTL: 100 * time.Second})
	u.ok("compare and swap", err)
	if second.Action != "compareAndSwap" || second.PrevNode.Value != "1" || second.Node.TTLDuration() <= 90*time.Second || second.Node.Expiration == nil {
		u.Errorf("compare and swap: %+v", second)
	}
	third, err := k.Set(ctx, "/a/f", "", &client.SetOptions{Refresh: true, PrevExist: client.PrevExist, TTL: 200 * time.Second})
	u.ok("refresh", err)
	if third.Node.Value != "2" || third.Node.TTL <= 100 {
		u.Errorf("refresh: %+v", third.Node)
	}
	_, err = k.Set(ctx, "/a/d", "", &client.SetOptions{Dir: true, PrevExist: client.PrevNoExist})
	u.ok("make a directory", err)
	none, err := k.Set(ctx, "/a/n", "x", &client.SetOptions{NoValueOnSuccess: true})
	u.ok("set without an answer", err)
	if none.Node != nil {
		u.Errorf("set without an answer: %+v", none.Node)
	}
	for range 3 {
		_, err := k.CreateInOrder(ctx, "/a/q", "j", &client.CreateInOrderOptions{TTL: time.Hour})
		u.ok("create in order", err)
	}
	all, err := k.Get(ctx, "/a", &client.GetOptions{Recursive: true, Sort: true, Quorum: true})
	u.ok("get", err)
	var keys []string
	for _, n := range all.Node.Nodes {
		keys = append(keys, n.Key)
	}
	if len(keys) != 4 || keys[0] != "/a/d" || keys[3] != "/a/q" || len(all.Node.Nodes[3].Nodes) != 3 || all.Index == 0 {
		u.Errorf("get: %v of index %d", keys, all.Index)
	}
	_, err = k.Delete(ctx, "/a", &client.DeleteOptions{Dir: true})
	u.fails("delete", err, client.ErrorCodeDirNotEmpty)
	_, err = k.Delete(ctx, "/a/f", &client.DeleteOptions{PrevValue: "x"})
	u.fails("compare and delete", err, client.ErrorCodeTestFailed)
	gone, err := k.Delete(ctx, "/a/f", &client.DeleteOptions{PrevIndex: third.Node.ModifiedIndex})
	u.ok("compare and delete", err)
	if gone.Action != "compareAndDelete" || gone.PrevNode.Value != "2" {
		u.Errorf("compare and delete: %+v", gone)
	}
	_, err = k.Delete(ctx, "/a", &client.DeleteOptions{Recursive: true})
	u.ok("delete", err)
	_, err = k.Get(ctx, "/a", nil)
	u.fails("get", err, client.ErrorCodeKeyNotFound)
}

func (u user) watch() {
	ctx := u.Context()
	k := client.NewKeysAPI(u.client("", ""))
	first, err := k.Set(ctx, "/w/f", "1", nil)
	u.ok("set", err)
	w := k.Watcher("/w", &client.WatcherOptions{AfterIndex: first.Node.ModifiedIndex - 1, Recursive: true})
	values := make(chan string)
	go func() {
		defer close(values)
		for range 12 {
			event, err := w.Next(ctx)
			if err != nil {
				u.Errorf("watch: %v", err)
				return
			}
			values <- event.Action + " " + event.Node.Key + " " + event.Node.Value
		}
	}()
	if got := <-values; got != "set /w/f 1" {
		u.Errorf("the event of the past is %q", got)
	}
	for i := range 10 {
		_, err := k.Set(ctx, "/w/f", string(rune('a'+i)), nil)
		u.ok("set", err)
		if got, want := <-values, "set /w/f "+string(rune('a'+i)); got != want {
			u.Errorf("event %q, want %q", got, want)
		}
	}
	_, err = k.Delete(ctx, "/w", &client.DeleteOptions{Recursive: true})
	u.ok("delete", err)
	if got := <-values; got != "delete /w " {
		u.Errorf("event %q of a deletion", got)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.Next(ended); !errors.Is(err, context.Canceled) {
		u.Errorf("a watch that was given up: %v", err)
	}
	_, err = k.Watcher("/w", &client.WatcherOptions{AfterIndex: 1}).Next(ended)
	if err == nil {
		u.Error("a watch that was given up before it began has an event")
	}
}

func (u user) members() {
	ctx := u.Context()
	m := client.NewMembersAPI(u.client("", ""))
	list, err := m.List(ctx)
	u.ok("list the members", err)
	if len(list) != 1 || list[0].Name != "default" || list[0].ClientURLs[0] != u.url {
		u.Errorf("members: %+v", list)
	}
	leader, err := m.Leader(ctx)
	u.ok("the leader", err)
	if leader.ID != list[0].ID {
		u.Errorf("leader %+v of %+v", leader, list)
	}
	if err := m.Remove(ctx, "1234"); err == nil {
		u.Error("a member that does not exist was removed")
	}
}

func (u user) auth() {
	ctx := u.Context()
	guest := u.client("", "")
	users, roles, auth := client.NewAuthUserAPI(guest), client.NewAuthRoleAPI(guest), client.NewAuthAPI(guest)
	if err := auth.Enable(ctx); err == nil {
		u.Error("auth was switched on without root")
	}
	u.ok("add root", users.AddUser(ctx, "root", "rpw"))
	u.ok("add alice", users.AddUser(ctx, "alice", "pw"))
	u.ok("add a role", roles.AddRole(ctx, "r"))
	role, err := roles.GrantRoleKV(ctx, "r", []string{"/mine/*"}, client.ReadWritePermission)
	u.ok("grant", err)
	if len(role.Permissions.KV.Write) != 1 {
		u.Errorf("role %+v", role)
	}
	alice, err := users.GrantUser(ctx, "alice", []string{"r"})
	u.ok("grant", err)
	if len(alice.Roles) != 1 || alice.Roles[0] != "r" {
		u.Errorf("alice %+v", alice)
	}
	names, err := users.ListUsers(ctx)
	u.ok("list users", err)
	if len(names) != 2 || names[0] != "alice" || names[1] != "root" {
		u.Errorf("users %v", names)
	}
	u.ok("switch auth on", auth.Enable(ctx))
	root := u.client("root", "rpw")
	_, err = client.NewAuthRoleAPI(root).RevokeRoleKV(ctx, "guest", []string{"/*"}, client.ReadWritePermission)
	u.ok("revoke", err)
	_, err = client.NewKeysAPI(guest).Set(ctx, "/mine/x", "1", nil)
	u.fails("set as a guest", err, client.ErrorCodeUnauthorized)
	_, err = client.NewKeysAPI(u.client("alice", "pw")).Set(ctx, "/mine/x", "1", nil)
	u.ok("set as alice", err)
	_, err = client.NewKeysAPI(u.client("alice", "bad")).Set(ctx, "/mine/x", "1", nil)
	u.fails("set with a wrong password", err, client.ErrorCodeUnauthorized)
	_, err = client.NewKeysAPI(u.client("alice", "pw")).Set(ctx, "/yours/x", "1", nil)
	u.fails("set elsewhere", err, client.ErrorCodeUnauthorized)
	_, err = client.NewAuthUserAPI(root).ChangePassword(ctx, "alice", "new")
	u.ok("change a password", err)
	_, err = client.NewKeysAPI(u.client("alice", "new")).Get(ctx, "/mine/x", nil)
	u.ok("get as alice", err)
	u.ok("remove alice", client.NewAuthUserAPI(root).RemoveUser(ctx, "alice"))
	u.ok("remove the role", client.NewAuthRoleAPI(root).RemoveRole(ctx, "r"))
	if err := auth.Disable(ctx); err == nil {
		u.Error("a guest switched auth off")
	}
	u.ok("switch auth off", client.NewAuthAPI(root).Disable(ctx))
}
