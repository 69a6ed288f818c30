package kvhttp

import (
	"context"
	"fmt"

	"stated.dev/stated/kvstore"
)

// Export returns the whole tree, this host's members, users and roles included, as one document of the form in which an
// etcd keeps its v2 store. It holds every change that was acknowledged before the call.
func Export(ctx context.Context, tree Replica) ([]byte, error) {
	if _, err := tree.Get(ctx, KeySpace, kvstore.GetRequest{}); err != nil {
		return nil, fmt.Errorf("export the key tree: %w", err)
	}
	return tree.Store().Save()
}

// Importer can replace the tree. *kvstore.Replica is one.
type Importer interface {
	Import(ctx context.Context, q kvstore.ImportRequest) (kvstore.Imported, error)
}

var _ Importer = (*kvstore.Replica)(nil)

// ImportRequest says what to import.
type ImportRequest struct {
	Document []byte
	Replace  bool // also when there are keys, users or roles
}

// Import replaces keys, users and roles by those of a document. What the document says of members is its own cluster's: what
// the tree says of them stays.
func Import(ctx context.Context, tree Importer, q ImportRequest) (kvstore.Imported, error) {
	return tree.Import(ctx, kvstore.ImportRequest{Document: q.Document, Keep: clusterSpace, Replace: q.Replace})
}
