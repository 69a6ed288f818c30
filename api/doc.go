// Package api is the Docker Engine API. The packages below it hold the server, the routes of each resource and the
// types; this one holds only the tests that need several of them.
package api
