package ca_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"stated.dev/stated/cluster/ca"
)

// A cluster begins: the first host makes the authority, signs its own certificate and keeps it.
func Example() {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	root, err := ca.NewRoot(now)
	if err != nil {
		panic(err)
	}
	state, err := ca.NewState("cluster1", root) // goes into the replicated object
	if err != nil {
		panic(err)
	}
	key, request, err := ca.NewRequest()
	if err != nil {
		panic(err)
	}
	issued, err := root.Sign(request, ca.Identity{Cluster: "cluster1", Node: "m1", Role: ca.Manager}, ca.DefaultLife, now)
	if err != nil {
		panic(err)
	}
	trust, err := state.Trust()
	if err != nil {
		panic(err)
	}
	held, err := ca.NewMaterial(key, issued, trust)
	if err != nil {
		panic(err)
	}

	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file, err := ca.OpenKeyFile(filepath.Join(dir, "node.pem"))
	if err != nil {
		panic(err)
	}
	if err := file.Write(held); err != nil {
		panic(err)
	}
	id, err := file.Identity()
	fmt.Println(id, err)
	// Output: node m1 (swarm-manager of cluster cluster1) <nil>
}

// Two hosts of a cluster talk; each knows who the other is.
func ExampleCredentials() {
	clock := func() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }
	root, err := ca.NewRoot(clock())
	if err != nil {
		panic(err)
	}
	trust, err := ca.NewTrust("cluster1", root.EncodeCertificates())
	if err != nil {
		panic(err)
	}
	host := func(node string, role ca.Role) *ca.Credentials {
		key, request, err := ca.NewRequest()
		if err != nil {
			panic(err)
		}
		issued, err := root.Sign(request, ca.Identity{Cluster: "cluster1", Node: node, Role: role}, 0, clock())
		if err != nil {
			panic(err)
		}
		held, err := ca.NewMaterial(key, issued, trust)
		if err != nil {
			panic(err)
		}
		credentials, err := ca.NewCredentials(held, clock)
		if err != nil {
			panic(err)
		}
		return credentials
	}
	m1, w1 := host("m1", ca.Manager), host("w1", ca.Worker)

	listener, err := tls.Listen("tcp", "127.0.0.1:0", m1.Server(ca.Want{}))
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func() {
		conn, err := tls.Dial("tcp", listener.Addr().String(), w1.Client(ca.Want{Role: ca.Manager}))
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		peer, err := w1.Peer(conn.ConnectionState(), ca.Want{})
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(conn, "hello, %v", peer)
	}()
	conn, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	said, err := io.ReadAll(conn)
	if err != nil {
		panic(err)
	}
	peer, err := m1.Peer(conn.(*tls.Conn).ConnectionState(), ca.Want{})
	fmt.Printf("%v says: %s %v\n", peer, said, err)
	// Output: node w1 (swarm-worker of cluster cluster1) says: hello, node m1 (swarm-manager of cluster cluster1) <nil>
}

// A stranger joins: it believes only the cluster that its token names, and shows the token after that.
func ExampleToken() {
	clock := func() time.Time { return time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) }
	root, err := ca.NewRoot(clock())
	if err != nil {
		panic(err)
	}
	state, err := ca.NewState("cluster1", root)
	if err != nil {
		panic(err)
	}
	trust, err := state.Trust()
	if err != nil {
		panic(err)
	}
	key, request, err := ca.NewRequest()
	if err != nil {
		panic(err)
	}
	issued, err := root.Sign(request, ca.Identity{Cluster: "cluster1", Node: "m1", Role: ca.Manager}, 0, clock())
	if err != nil {
		panic(err)
	}
	held, err := ca.NewMaterial(key, issued, trust)
	if err != nil {
		panic(err)
	}
	m1, err := ca.NewCredentials(held, clock)
	if err != nil {
		panic(err)
	}

	listener, err := tls.Listen("tcp", "127.0.0.1:0", m1.JoinServer())
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	go func(typed string) {
		token, err := ca.ParseToken(typed)
		if err != nil {
			panic(err)
		}
		conn, err := tls.Dial("tcp", listener.Addr().String(), token.Client(clock))
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, token)
	}(state.Tokens.Worker.String())
	conn, err := listener.Accept()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	shown, err := io.ReadAll(conn)
	if err != nil {
		panic(err)
	}
	role, err := state.Tokens.Admit(string(shown))
	fmt.Println(role, err)
	// Output: swarm-worker <nil>
}

// The root changes while the cluster runs.
func ExampleState_Rotate() {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	root, err := ca.NewRoot(now)
	if err != nil {
		panic(err)
	}
	state, err := ca.NewState("cluster1", root)
	if err != nil {
		panic(err)
	}
	next, err := ca.NewRoot(now)
	if err != nil {
		panic(err)
	}
	if state, err = state.Rotate(next, now); err != nil {
		panic(err)
	}

	// Each node gets a certificate from the new root, and is seen with it.
	signer, err := state.Signer()
	if err != nil {
		panic(err)
	}
	nodes := []string{"m1", "w1"}
	for _, node := range nodes {
		fmt.Println("waits for", state.Waiting(nodes))
		_, request, err := ca.NewRequest()
		if err != nil {
			panic(err)
		}
		issued, err := signer.Sign(request, ca.Identity{Cluster: "cluster1", Node: node, Role: ca.Worker}, 0, now)
		if err != nil {
			panic(err)
		}
		chain, err := ca.ParseCertificates(issued)
		if err != nil {
			panic(err)
		}
		if state, err = state.Moved(chain, now); err != nil {
			panic(err)
		}
	}
	if state, err = state.Finish(nodes); err != nil {
		panic(err)
	}
	counts, err := state.Root()
	fmt.Println(counts.Digest() == next.Digest(), err)
	// Output:
	// waits for [m1 w1]
	// waits for [w1]
	// true <nil>
}

// A host's key is sealed, so that its disk alone is of no use.
func ExampleUnlockKey() {
	key, err := ca.ParseUnlockKey("SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8")
	fmt.Println(key, err)
	_, err = ca.ParseUnlockKey("SWMKEY-1-7c37Cc8654o6p38")
	fmt.Println(err)
	// Output:
	// SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8 <nil>
	// it has 15 characters after the version, not 43: invalid unlock key: invalid argument
}
