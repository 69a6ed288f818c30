package kvstore

import "time"

// The wall clock is followed at once when it is ahead by no more than maxStep. A larger jump is made up for by a clock that runs
// half as fast again, so that keys do not all expire because somebody set a clock.
const maxStep = 10 * time.Second

// logClock is the time by which a replica stamps commands. It starts at the wall clock or at the time of the last command, whichever is
// later, and goes on with the monotonic clock: it never goes back, and it does not wait for a wall clock that was set back. A
// follower's clock is that of its leader, as far as commands tell it.
type logClock struct {
	at      time.Time // the time when it was last read
	read    time.Time // monotonic reading of that moment; zero before the first one
	slewing bool
}

// now returns the time. jumped says that the wall clock has just been found ahead by more than maxStep.
func (c *logClock) now(wall, applied time.Time) (t time.Time, jumped time.Duration) {
	mono := time.Now()
	if c.read.IsZero() {
		c.at, c.read = wall, mono
		if applied.After(wall) {
			c.at = applied
		}
		return c.at, 0
	}
	elapsed := mono.Sub(c.read)
	c.at, c.read = c.at.Add(elapsed), mono
	if applied.After(c.at) {
		c.at = applied
	}
	switch ahead := wall.Sub(c.at); {
	case ahead <= 0:
		c.slewing = false
	case ahead > maxStep || c.slewing:
		if !c.slewing {
			jumped = ahead
		}
		c.slewing = true
		c.at = c.at.Add(min(elapsed/2, ahead))
	default:
		c.at = wall
	}
	return c.at, jumped
}

// follow sets the clock to what the leader's command said.
func (c *logClock) follow(t time.Time) {
	c.at, c.read = t, time.Now()
}
