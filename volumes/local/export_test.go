package local

import "context"

// Source returns the device and the options that a mount of a volume hands to the kernel.
func Source(ctx context.Context, given map[string]string, resolve Resolver) (device, opts string, err error) {
	o := options{MountType: given["type"], MountDevice: given["device"], MountOpts: given["o"]}
	return o.source(ctx, resolve)
}
