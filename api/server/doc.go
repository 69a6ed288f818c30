// Package server serves API routes over HTTP in Docker's manner: versions in the path, default headers, errors as
// {"message": ...}, readiness, and an orderly end. It knows no resource and never decides what a request means.
//
// Locks: activity.mu guards the count of running handlers, newcomers.mu the connections without a request. Neither is
// taken with the other; newcomers.mu is held while connections are closed, which waits for nobody.
package server
