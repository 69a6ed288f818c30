package store

import (
	"cmp"
	"context"
	"runtime"
)

// The limits of transactions.
const (
	MaxChangesPerTransaction = 200     // at which a batch proposes what it has
	MaxTransactionBytes      = 3 << 19 // of a proposal; a larger one is refused with ErrRequestTooLarge
	batchBytes               = MaxTransactionBytes / 4 * 3
)

// Batching is a Batch under way. It is for the goroutine and the time of its callback.
type Batching struct {
	store  *Store
	ctx    context.Context // of the call of Batch, which this is a part of
	draft  *draft
	unlock func() // nil while the update lock is not held
	err    error  // of a part that did not take effect
}

// Batch calls cb, whose changes take effect in parts: whenever there are many, and in the end. Between two parts other
// updates come in. After an error, of cb or of a part, the parts that came before remain.
//
// The rules for callbacks of Update are those for cb, and for what it gives to Batching.Update.
func (s *Store) Batch(ctx context.Context, cb func(*Batching) error) error {
	defer s.observe(Batch)()
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	b := &Batching{store: s, ctx: ctx, draft: s.draft(), unlock: unlock}
	defer b.release()
	if err := s.callBatch(cb, b); err != nil {
		return err
	}
	if b.err == nil {
		b.flush()
	}
	return b.err
}

// Update calls cb with a transaction, whose changes are all in one part. It returns cb's error, and then the transaction
// changes nothing. After a part did not take effect it returns the error of that, and so does every later call.
func (b *Batching) Update(cb func(*Tx) error) error {
	if b.err != nil {
		return b.err
	}
	d := b.draft
	n, size := len(d.changes), d.bytes
	if err := d.run(cb); err != nil {
		return err
	}
	if b.err = d.encode(); b.err != nil {
		return b.err
	}
	if n > 0 && size+d.sizeFrom(n) > MaxTransactionBytes-commandRoom {
		d.split = n
	}
	if len(d.changes) < MaxChangesPerTransaction && d.bytes < batchBytes {
		return nil
	}
	if b.flush(); b.err != nil {
		return b.err
	}
	runtime.Gosched() // to whoever waits for the lock
	if b.unlock, b.err = b.store.lock(b.ctx); b.err == nil {
		b.draft = b.store.draft()
	}
	return b.err
}

// flush makes a part of what there is, and releases the lock.
func (b *Batching) flush() {
	d, s := b.draft, b.store
	if s.proposer == nil {
		d.commit()
		b.release()
		return
	}
	b.release()
	if d.split > 0 {
		var rest *draft
		if rest, b.err = s.proposeFirst(b.ctx, d); b.err != nil {
			return
		}
		d = rest
	}
	if len(d.changes) > 0 {
		var r Result
		r, b.err = s.propose(b.ctx, d)
		b.err = cmp.Or(b.err, r.Err)
	}
}

func (b *Batching) release() {
	if b.unlock != nil {
		b.unlock()
		b.unlock = nil
	}
}
