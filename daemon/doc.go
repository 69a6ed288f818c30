// Package daemon is the house: it opens the subsystems in phases, joins them, and closes them again. It is the only
// package that knows everybody; nobody below imports it.
//
// Where to find what:
//
//	boot.go       every constructor of the program, in the order of the phases
//	phase.go      phases: opened in order, undone in reverse
//	adapters.go   the small seams at which subsystems meet that do not know each other
//	config.go     what an operator can set
//	root.go       the data root: whose it is, its lock, the engine's id
//	offline.go    what is done while the daemon is stopped: hand back, clean up
//	doctor.go     what every subsystem has set aside
//	adopt/        a look at a root that dockerd made, and the copy of its records
//	containers/   the containers: records, verbs, restore
//	images/       references and configurations of images
//	runtime/      tasks and their shims; ocispec describes a container to runc, external goes through a containerd
//	shim/         what runs beside each container and outlives the daemon
//	journal/      the commit record of containers and layers
//	logs/         log formats, rotation and reading
//	system/       what info and version say
//
// The phases are: graph driver, volumes, network datastores, cluster store, restore, serve. Those before restore open
// stores and delete nothing that may be in use; what is stale is cleaned up in restore, after the shims have said what
// lives. The socket listens from the beginning and answers 503 with the phase's name until serve.
package daemon
