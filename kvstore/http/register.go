package kvhttp

import (
	"context"
	"fmt"
	"strconv"

	"stated.dev/stated/kvstore"
)

// Register writes into the tree who this host is and which version the cluster has, where an etcd writes them too. It
// changes only what is missing or different. An API that answers before has the index 0, which clients take for an error.
func Register(ctx context.Context, tree Replica, cluster Cluster) error {
	self := cluster.Self()
	at := clusterSpace + "/members/" + strconv.FormatUint(self.ID, 16)
	entries := []struct {
		path string
		v    []byte
	}{
		{at + "/raftAttributes", encode(struct {
			PeerURLs []string `json:"peerURLs"`
		}{list(self.PeerURLs)})},
		{at + "/attributes", encode(struct {
			Name       string   `json:"name,omitempty"`
			ClientURLs []string `json:"clientURLs,omitempty"`
		}{self.Name, self.ClientURLs})},
		{clusterSpace + "/version", []byte(ClusterVersion)},
	}
	for _, e := range entries {
		now, err := tree.Get(ctx, e.path, kvstore.GetRequest{})
		if err == nil && !now.Node.Dir && now.Node.Value == string(e.v) {
			continue
		}
		if err != nil && code(err) != kvstore.CodeKeyNotFound {
			return fmt.Errorf("register in the key tree: %w", err)
		}
		if _, err := tree.Do(ctx, kvstore.Command{Op: kvstore.OpSet, Path: e.path, Value: string(e.v)}); err != nil {
			return fmt.Errorf("register in the key tree: %w", err)
		}
	}
	return nil
}
