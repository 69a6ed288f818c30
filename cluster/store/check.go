//go:build !race

package store

import "stated.dev/stated/cluster/objects"

// checked says that the store looks whether somebody changed what it gave out.
const checked = false

type seals struct{}

func (*seals) check(objects.Object) {}
func (*seals) replace([]Event)      {}
