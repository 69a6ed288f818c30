// Package dns is the resolver of containers on networks with names: the daemon writes zones, and a Server inside the
// shim answers from them at 127.0.0.11:53 in the container's network namespace and forwards the rest.
//
// A zone is a sorted text file that is replaced whole. Servers search it where it lies: all containers of a network
// share its pages, none keeps a copy, and a look at the file's identity at each query makes a new one count at once.
//
// The package knows no networks or containers, caches nothing and never writes to the host's resolver. An idle server
// is two goroutines. Its mutexes guard the configuration and the open zones, and the entering of namespaces; neither
// is held while the network is waited for.
package dns
