// Package system answers what clients ask about the daemon itself: GET /info, GET /version and GET /system/df. It puts
// together what the other services and the host tell; it changes nothing and keeps nothing but what cannot change
// while the daemon runs.
//
// Locks: tool.mu guards what a helper binary said of itself and is held while it is asked.
package system
