package store

import (
	"context"

	"github.com/containerd/errdefs"
)

// failure is an error with a text that others rely on, and a class.
type failure struct {
	text  string
	class error
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.class }

func newError(text string, class error) error { return &failure{text, class} }

var (
	// ErrExist is returned for the creation of an object whose ID is taken.
	ErrExist = newError("object already exists", errdefs.ErrAlreadyExists)

	// ErrNotExist is returned for the update or removal of an object that is not there.
	ErrNotExist = newError("object does not exist", errdefs.ErrNotFound)

	// ErrNameConflict is returned when another object of the kind has the name, in whatever case.
	ErrNameConflict = newError("name conflicts with an existing object", errdefs.ErrAlreadyExists)

	// ErrInvalidFindBy is returned for a selector that the table does not have.
	ErrInvalidFindBy = newError("invalid find argument type", errdefs.ErrInvalidArgument)

	// ErrSequenceConflict is returned when an object was changed since the version that an update or removal began with.
	ErrSequenceConflict = newError("update out of sequence", errdefs.ErrFailedPrecondition)

	// ErrNoKind is returned for a resource whose type no extension has.
	ErrNoKind = newError("object kind is unregistered", errdefs.ErrFailedPrecondition)

	// ErrImmutable is returned for the update of an extension.
	ErrImmutable = newError("extensions are immutable", errdefs.ErrFailedPrecondition)

	// ErrInUse is returned for the removal of an extension that resources have for their type.
	ErrInUse = newError("cannot delete extension because objects of this type exist in the data store", errdefs.ErrFailedPrecondition)

	// ErrUnknownAction is returned for an action that this version does not know.
	ErrUnknownAction = newError("unrecognized action type", errdefs.ErrInvalidArgument)

	// ErrUnknownEvent is returned by Replay.
	ErrUnknownEvent = newError("unrecognized event type", errdefs.ErrInvalidArgument)

	// ErrUnversioned is returned by WatchFrom and Changes without a proposer.
	ErrUnversioned = newError("store does not support versioning", errdefs.ErrFailedPrecondition)

	// ErrNoVersion is returned by WatchFrom while this host is no member.
	ErrNoVersion = newError("could not get current version from store", errdefs.ErrUnavailable)

	// ErrCompacted is returned by WatchFrom and Changes for a version that is too old. Whoever asked has to read anew.
	ErrCompacted = newError("the changes after this version are not kept any more", errdefs.ErrOutOfRange)

	// ErrFuture is returned by WatchFrom and Changes for a version that there was not yet.
	ErrFuture = newError("there is no such version yet", errdefs.ErrOutOfRange)

	// ErrNoID is returned for an object whose ID is empty, has a zero byte or is not UTF-8.
	ErrNoID = newError("the object has no ID that can be used", errdefs.ErrInvalidArgument)

	// ErrNoName is returned for an object without a name where it needs one, and for names with a zero byte.
	ErrNoName = newError("the object has no name that can be used", errdefs.ErrInvalidArgument)

	// ErrNested is returned by Update and Batch in a callback of either.
	ErrNested = newError("an update was begun within another one", errdefs.ErrInternal)

	// ErrOver is returned for changes in a transaction that has ended.
	ErrOver = newError("the transaction is over", errdefs.ErrInternal)

	// ErrReplicated is returned where a change would not go through the log.
	ErrReplicated = newError("the store is changed through its log only", errdefs.ErrFailedPrecondition)

	// errDamaged and errRepeat are what Apply makes of bytes that are no command, and of commands that came before.
	errDamaged = newError("the command cannot be read", errdefs.ErrDataLoss)
	errRepeat  = newError("the command is a late repeat and was dropped", errdefs.ErrUnknown)
)

// verdicts are all that can become of a command. Their places are stored in snapshots, so they never change.
var verdicts = []error{nil, ErrExist, ErrNotExist, ErrNameConflict, ErrSequenceConflict, ErrNoKind, ErrImmutable, ErrInUse,
	ErrUnknownAction, ErrNoID, ErrNoName, errDamaged, errRepeat}

// What proposers return.
var (
	ErrNoRaftMember       = newError("raft: node is not yet part of a raft cluster", errdefs.ErrUnavailable)
	ErrStopped            = newError("raft: failed to process the request: node is stopped", errdefs.ErrUnavailable)
	ErrLostLeadership     = newError("raft: failed to process the request: node lost leader status", errdefs.ErrUnavailable)
	ErrRequestTooLarge    = newError("raft: raft message is too large and can't be sent", errdefs.ErrInvalidArgument)
	ErrConfChangeRefused  = newError("raft: propose configuration change refused", errdefs.ErrFailedPrecondition)
	ErrCannotRemoveMember = newError("raft: member cannot be removed, because removing it may result in loss of quorum", errdefs.ErrFailedPrecondition)
	ErrNoClusterLeader    = newError("raft: no elected cluster leader", errdefs.ErrUnavailable)
	ErrMemberUnknown      = newError("raft: member unknown", errdefs.ErrNotFound)
)

// What a watcher ends with that was not cancelled.
var (
	ErrBacklog     = newError("queue closed due to size limit", errdefs.ErrResourceExhausted)
	ErrSlow        = newError("timeout exceeded, tearing down sink", context.DeadlineExceeded)
	ErrQueueClosed = newError("queue closed", errdefs.ErrUnavailable)
)
