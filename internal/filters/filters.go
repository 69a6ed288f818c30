// Package filters reads the filters parameter of list, prune and event requests and matches values against it.
package filters

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Args maps a filter's key to the values asked for. A nil Args matches everything.
type Args map[string][]string

// Parse reads both wire forms: {"label":["a=b"]} and the older {"label":{"a=b":true}}.
func Parse(s string) (Args, error) {
	if s == "" {
		return nil, nil
	}
	var list map[string][]string
	if err := json.Unmarshal([]byte(s), &list); err == nil {
		return list, nil
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(s), &sets); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid filter")
	}
	args := Args{}
	for key, set := range sets {
		for value, on := range set {
			if on {
				args[key] = append(args[key], value)
			}
		}
		slices.Sort(args[key])
	}
	return args, nil
}

// Validate refuses keys that are not among known.
func (a Args) Validate(known ...string) error {
	for key := range a {
		if !slices.Contains(known, key) {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter '%s'", key))
		}
	}
	return nil
}

// Has reports whether key was given.
func (a Args) Has(key string) bool { return len(a[key]) > 0 }

// Match reports whether key was not given, or one of its values equals value.
func (a Args) Match(key, value string) bool {
	return !a.Has(key) || slices.Contains(a[key], value)
}

// MatchAny reports whether key was not given, or ok holds for one of its values.
func (a Args) MatchAny(key string, ok func(want string) bool) bool {
	return !a.Has(key) || slices.ContainsFunc(a[key], ok)
}

// MatchLabels reports whether every value of key, "name" or "name=value", is found in labels.
func (a Args) MatchLabels(key string, labels map[string]string) bool {
	for _, want := range a[key] {
		name, value, withValue := strings.Cut(want, "=")
		have, found := labels[name]
		if !found || (withValue && have != value) {
			return false
		}
	}
	return true
}

// Bool returns the truth value given for key, or fallback when it was not given.
func (a Args) Bool(key string, fallback bool) (bool, error) {
	switch {
	case !a.Has(key):
		return fallback, nil
	case len(a[key]) == 1 && (a[key][0] == "1" || a[key][0] == "true"):
		return true, nil
	case len(a[key]) == 1 && (a[key][0] == "0" || a[key][0] == "false"):
		return false, nil
	}
	return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter '%s=%s'", key, a[key]))
}
