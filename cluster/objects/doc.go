// Package objects has the things that a cluster's state consists of: nodes, services, tasks, networks, the cluster itself,
// secrets, configs, volumes, extensions and resources. It also has their encoded form and their deep copy.
//
// It keeps nothing and has no locks. What Docker's API says about the inside of an object is said with the API's own types.
//
// An encoded object is a byte with the version, 1, and JSON. A reader skips fields that it does not know, and refuses a
// version that it does not know. Strings have to be UTF-8.
package objects
