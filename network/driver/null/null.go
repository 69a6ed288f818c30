// Package null is the driver of the network "none": containers get a namespace with a loopback interface only.
package null

import (
	"context"

	"stated.dev/stated/network/driver"
)

// Driver has no state.
type Driver struct{}

var _ driver.Driver = Driver{}

func (Driver) Type() string          { return "null" }
func (Driver) Traits() driver.Traits { return driver.Traits{Single: true} }

func (Driver) PlanNetwork(context.Context, *driver.Network) error                    { return nil }
func (Driver) CreateNetwork(context.Context, *driver.Network) error                  { return nil }
func (Driver) DeleteNetwork(context.Context, *driver.Network) error                  { return nil }
func (Driver) PlanEndpoint(context.Context, *driver.Network, *driver.Endpoint) error { return nil }
func (Driver) Join(context.Context, driver.Attachment) error                         { return nil }
func (Driver) Publish(context.Context, []driver.Attachment) error                    { return nil }
func (Driver) Close() error                                                          { return nil }

// Leave returns a closed channel: there is nothing to wait for.
func (Driver) Leave(context.Context, []driver.Attachment) (<-chan struct{}, error) {
	done := make(chan struct{})
	close(done)
	return done, nil
}

func (Driver) Sync(context.Context, []*driver.Network, []driver.Attachment) (map[string]error, error) {
	return nil, nil
}
