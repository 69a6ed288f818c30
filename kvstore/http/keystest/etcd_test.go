package keystest_test

import (
	"testing"

	"stated.dev/stated/kvstore/http/keystest"
)

func TestEtcd(t *testing.T) {
	keystest.Run(t, func(t *testing.T) keystest.Server { return keystest.Server{URL: keystest.Etcd(t), Etcd: true} })
}
