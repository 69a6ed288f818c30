// Package shim is what runs beside a container: one process for each, started by the daemon and outliving it.
//
// It wraps containerd's runc task service, unmodified, and adds what must not stop with the daemon: it holds the
// standard streams, records the output, hands it to attached clients, serves names inside the network
// namespace, holds host ports, and writes down how the container ended. It never reads the daemon's records, never
// decides about restarts, and talks to nobody but its callers.
//
// Calls are carried out apart from their callers (calls.go): a daemon that dies kills no runc, and a repeated call
// gets the first one's result.
//
// Locks: Shim.life is held over creating, starting and deleting init, so that these follow each other. Shim.mu guards
// the table of further processes; process.mu, fanout.mu and sink.mu are leaves and are never held over a call to the
// inner service.
package shim
