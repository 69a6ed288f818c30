// Package ca knows the certificates, keys and tokens by which the hosts of a cluster recognise each other.
//
// A cluster has an authority, Root. A host makes a key and a request (NewRequest), shows a join Token to a host that it
// has checked against the same token, and gets a certificate that says which node of which cluster it is, and in which
// role. From then on all links are TLS 1.3 with certificates on both sides: Credentials makes the configurations, and a
// Renewer says when a new certificate is due. State is the authority as the cluster's replicated object holds it,
// together with a change of the root that may be under way. KeyFile keeps a host's key on its disk, sealed under an
// UnlockKey where the cluster asks for that.
//
// The package never opens a socket and knows no store: the caller moves requests, certificates and states about. It
// reads no clock: times are passed in. State, Trust, Token and Root are values that do not change; Credentials, KeyFile
// and Renewer may be used by several goroutines.
package ca
