package events

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/filters"
)

// matcher applies filters by Docker's rules: one that it does not know changes nothing. A nil matcher lets everything through.
type matcher struct {
	args filters.Args
	// named are the filters that compare their value with the beginning of the actor's id and name.
	named []string
	// loose says that event filters compare beginnings, because one of them names events that carry text of their own.
	loose bool
}

func newMatcher(args filters.Args) *matcher {
	m := &matcher{args: args}
	for _, key := range []events.Type{
		events.DaemonEventType, events.ContainerEventType, events.PluginEventType, events.VolumeEventType,
		events.NetworkEventType, events.NodeEventType, events.ServiceEventType, events.SecretEventType,
		events.ConfigEventType,
	} {
		if args.Has(string(key)) {
			m.named = append(m.named, string(key))
		}
	}
	for _, open := range []events.Action{events.ActionHealthStatus, events.ActionExecCreate, events.ActionExecStart} {
		m.loose = m.loose || slices.Contains(args["event"], string(open))
	}
	for key := range args {
		if args.Has(key) {
			return m
		}
	}
	return nil
}

func (m *matcher) fits(e *events.Message) bool {
	if m == nil {
		return true
	}
	if !m.args.Match("type", string(e.Type)) || !m.args.Match("scope", e.Scope) || !m.fitsAction(string(e.Action)) {
		return false
	}
	for _, key := range m.named {
		if !m.begins(key, e.Actor.ID) && !m.begins(key, e.Actor.Attributes["name"]) {
			return false
		}
	}
	return m.fitsImage(e) && m.args.MatchLabels("label", e.Actor.Attributes)
}

// begins reports whether value begins with one of the values of a filter.
func (m *matcher) begins(key, value string) bool {
	return m.args.MatchAny(key, func(want string) bool { return strings.HasPrefix(value, want) })
}

func (m *matcher) fitsAction(action string) bool {
	if m.loose {
		return m.begins("event", action)
	}
	return m.args.Match("event", action)
}

// fitsImage compares image events by id and name, and other events by the image they say they come from, each with
// its tag and without.
func (m *matcher) fitsImage(e *events.Message) bool {
	if !m.args.Has("image") {
		return true
	}
	name := e.Actor.Attributes["image"]
	if e.Type == events.ImageEventType {
		name = e.Actor.Attributes["name"]
	}
	return m.args.MatchAny("image", func(want string) bool {
		return want == e.Actor.ID || want == name || want == familiarName(e.Actor.ID) || want == familiarName(name)
	})
}

// familiarName returns an image's name without tag, digest and the parts that can be left out.
func familiarName(image string) string {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return image
	}
	return reference.FamiliarName(ref)
}
