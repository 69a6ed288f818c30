package server

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
)

// splitVersion cuts a version prefix, as in "/v1.43/info", off path. Without one the version is empty.
func splitVersion(path string) (version, rest string) {
	after, found := strings.CutPrefix(path, "/v")
	if !found {
		return "", path
	}
	end := strings.IndexByte(after, '/')
	if end <= 0 {
		return "", path
	}
	for i := range end {
		if c := after[i]; c != '.' && (c < '0' || c > '9') {
			return "", path
		}
	}
	return after[:end], after[end:]
}

// checkVersion refuses a version that is not served.
func checkVersion(version string) error {
	switch {
	case route.CompareVersions(version, route.MinVersion) < 0:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
			"client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version",
			version, route.MinVersion))
	case route.CompareVersions(version, route.DefaultVersion) > 0:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
			"client version %s is too new. Maximum supported API version is %s", version, route.DefaultVersion))
	}
	return nil
}

// trimURL makes r's path the one that routes are registered under: without version prefix and without doubled
// slashes, which old clients produce from names like "/web". It reports whether the path can be routed: the mux
// would answer one with "." or ".." parts with a redirect, which clients follow with another method.
func trimURL(r *http.Request) (version string, ok bool) {
	version, r.URL.Path = splitVersion(r.URL.Path)
	if r.URL.RawPath != "" {
		_, r.URL.RawPath = splitVersion(r.URL.RawPath)
	}
	if strings.Contains(r.URL.EscapedPath(), "//") {
		escaped := squeeze(r.URL.EscapedPath())
		plain, err := url.PathUnescape(escaped)
		if err != nil {
			return version, false
		}
		r.URL.Path, r.URL.RawPath = plain, escaped
	}
	path := r.URL.EscapedPath()
	if path == "" || path[0] != '/' {
		return version, false
	}
	if !strings.Contains(path, "/.") {
		return version, true
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return version, false
		}
	}
	return version, true
}

func squeeze(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}
