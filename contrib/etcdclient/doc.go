// Package etcdclient drives the key tree with the public Go client of etcd's v2 API. It is a module of its own: the client
// is not one of the libraries that stated is built with.
package etcdclient
