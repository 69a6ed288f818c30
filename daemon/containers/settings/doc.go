// Package settings checks what users ask of a container, fills in what they left out, and merges it with the image's
// configuration, by the rules and in the words of Docker 28.
//
// A create request goes through Validate, Defaults, ParseSecurityOpt, MergeImage and Command, in this order; an update
// through ValidateUpdate and ApplyUpdate.
//
// It is pure: it reads no file and no record and starts nothing; what it must know of the host and the daemon is in
// Host. Names of other containers, images, volumes, networks and log drivers are checked by those who know them.
// All errors are errdefs.ErrInvalidArgument unless a function says otherwise. There are no locks and no state.
package settings
