package logs

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"text/template"
	"time"

	"stated.dev/stated/internal/ids"
)

// Info is what log options can refer to: the tag option is a template over its fields and methods, which have the
// names that Docker's documentation gives them.
type Info struct {
	ContainerID         string
	ContainerName       string // with or without the leading slash
	ContainerEntrypoint string
	ContainerArgs       []string
	ContainerImageID    string
	ContainerImageName  string
	ContainerCreated    time.Time
	ContainerEnv        []string
	ContainerLabels     map[string]string
	DaemonName          string
}

// ID returns the short container id.
func (i Info) ID() string { return ids.Short(i.ContainerID) }

// FullID returns the container id.
func (i Info) FullID() string { return i.ContainerID }

// Name returns the container's name without its slash.
func (i Info) Name() string { return strings.TrimPrefix(i.ContainerName, "/") }

// ImageID returns the short image id.
func (i Info) ImageID() string { return ids.Short(i.ImageFullID()) }

// ImageFullID returns the image id.
func (i Info) ImageFullID() string { return strings.TrimPrefix(i.ContainerImageID, "sha256:") }

// ImageName returns the name of the image as the user gave it.
func (i Info) ImageName() string { return i.ContainerImageName }

// Command returns the entry point and its arguments.
func (i Info) Command() string {
	return strings.Join(append([]string{i.ContainerEntrypoint}, i.ContainerArgs...), " ")
}

// SelectAttrs returns the labels and environment variables that the options labels, labels-regex, env and env-regex
// choose, and the tag, to be stored with each record. It returns nil when there are none.
func SelectAttrs(config map[string]string, info Info) (map[string]string, error) {
	attrs := map[string]string{}
	if err := selectInto(attrs, config["labels"], config["labels-regex"], info.ContainerLabels); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, pair := range info.ContainerEnv {
		if name, value, ok := strings.Cut(pair, "="); ok {
			env[name] = value
		}
	}
	if err := selectInto(attrs, config["env"], config["env-regex"], env); err != nil {
		return nil, err
	}
	if text := config["tag"]; text != "" {
		tag, err := renderTag(text, info)
		if err != nil {
			return nil, err
		}
		if tag != "" {
			attrs["tag"] = tag
		}
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return attrs, nil
}

func selectInto(attrs map[string]string, names, pattern string, from map[string]string) error {
	if names != "" {
		for name := range strings.SplitSeq(names, ",") {
			if value, ok := from[name]; ok {
				attrs[name] = value
			}
		}
	}
	if pattern != "" {
		re, err := regexp.Compile(pattern)
		if err != nil {
			return invalid("%v", err)
		}
		for name, value := range from {
			if re.MatchString(name) {
				attrs[name] = value
			}
		}
	}
	return nil
}

func renderTag(text string, info Info) (string, error) {
	functions := template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"split": strings.Split,
		"join":  strings.Join,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"truncate": func(s string, n int) string {
			if n >= 0 && n < len(s) {
				return s[:n]
			}
			return s
		},
	}
	t, err := template.New("log-tag").Funcs(functions).Parse(text)
	if err != nil {
		return "", invalid("%v", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, info); err != nil {
		return "", invalid("%v", err)
	}
	return out.String(), nil
}
