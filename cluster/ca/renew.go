package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// RenewAt says when a certificate is to be renewed: after half of its life to eight tenths of it, as jitter goes from 0
// to 1. So the hosts of a cluster that began together do not come together.
func RenewAt(cert *x509.Certificate, jitter float64) time.Time {
	issued := cert.NotBefore.Add(Backdate)
	if !issued.Before(cert.NotAfter) {
		issued = cert.NotBefore // an external authority's, which lives shorter than ours are backdated
	}
	life := cert.NotAfter.Sub(issued)
	return issued.Add(life/2 + time.Duration(0.3*jitter*float64(life)))
}

// Clock tells the time and waits. Its After may be a timer's, which stands still while the host sleeps.
type Clock interface {
	Now() time.Time
	After(time.Duration) <-chan time.Time
}

// Between two attempts lie a second, then twice as long each time, to a twentieth of the certificate's life or an hour.
const (
	firstRetry = time.Second
	lastRetry  = time.Hour
)

// wallCheck bounds a wait, because a timer does not follow when the clock is set or the host wakes up.
const wallCheck = time.Hour

// Renewal is what a Renewer works with.
type Renewal struct {
	Clock   Clock
	Jitter  func() float64                  // in [0, 1)
	Current func() *x509.Certificate        // the host's own
	Renew   func(ctx context.Context) error // gets a new certificate, keeps it (KeyFile.Write), then shows it (Credentials.Replace)
	Failed  func(err error, next time.Time) // told of an attempt that failed, and when the next one is; may be nil
}

// Renewer renews a host's certificate in time.
type Renewer struct {
	Renewal
	kick chan struct{}
}

// NewRenewer returns a renewer, which does nothing until Run.
func NewRenewer(r Renewal) *Renewer {
	return &Renewer{Renewal: r, kick: make(chan struct{}, 1)}
}

// RenewNow makes Run renew without waiting, because the root or the node's role has changed. It does not block.
func (r *Renewer) RenewNow() {
	select {
	case r.kick <- struct{}{}:
	default: // one is asked for already
	}
}

var errNotRenewed = errors.New("the certificate is the same as before")

// Run renews the certificate whenever that is due, until ctx ends, and returns its error. A failed renewal is tried
// again, also when the certificate has expired meanwhile: others may be able to help only later.
func (r *Renewer) Run(ctx context.Context) error {
	cert := r.Current()
	next, retry := RenewAt(cert, r.Jitter()), firstRetry
	for {
		due, err := r.wait(ctx, cert, next)
		if err != nil {
			return err
		}
		if due {
			err = r.Renew(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err == nil && r.Current().Equal(cert) {
				err = errNotRenewed
			}
		}
		now := r.Clock.Now()
		if err != nil {
			next = now.Add(time.Duration((1 + r.Jitter()) / 2 * float64(retry)))
			retry = min(2*retry, lastRetry, max(firstRetry, cert.NotAfter.Sub(cert.NotBefore)/20))
			if r.Failed != nil {
				r.Failed(fmt.Errorf("renew the certificate, which ends %s: %w", cert.NotAfter.Format(time.RFC3339), err), next)
			}
			continue
		}
		cert, retry = r.Current(), firstRetry
		next = RenewAt(cert, r.Jitter())
		if next.Before(now.Add(firstRetry)) {
			next = now.Add(firstRetry) // the signer's clock is far behind ours
		}
	}
}

// wait returns true when it is time to renew, and false when cert has been replaced by somebody else.
func (r *Renewer) wait(ctx context.Context, cert *x509.Certificate, at time.Time) (due bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if !r.Current().Equal(cert) {
			return false, nil
		}
		left := at.Sub(r.Clock.Now())
		if left <= 0 {
			return true, nil
		}
		select {
		case <-ctx.Done():
		case <-r.kick:
			return true, nil
		case <-r.Clock.After(min(left, wallCheck)):
		}
	}
}
