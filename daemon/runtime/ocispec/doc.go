// Package ocispec writes the OCI runtime specification of a container from its configuration, the way Docker 28 does it:
// the same namespaces, mounts, devices, capabilities, limits and order of environment.
//
// Build reads the root file system it is given (user and group files), the device nodes of the host that the
// container asks for, and the host's mount table where a mount's propagation needs it. It changes nothing, starts
// nothing and knows no record, image or network: what it needs of them stands in Input. Two functions do write, and are
// called by name: EnsureWorkdir and LoadAppArmorDefault. The package has no locks and no state.
//
// Its errors carry no class on purpose: a container that cannot be started for what its specification asks is, in
// Docker's API, a server error (500), not a bad start request.
package ocispec
