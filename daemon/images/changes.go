package images

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-connections/nat"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/sys/signal"
)

// applyChanges applies Dockerfile instructions to a configuration, as the changes parameter of import and commit
// has them. One element may hold several lines.
func applyChanges(config *dockerspec.DockerOCIImageConfig, changes []string) error {
	c := &changer{config: config}
	for _, line := range logicalLines(strings.Join(changes, "\n")) {
		if err := c.apply(line); err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
	}
	return nil
}

// ApplyChanges is what a commit does with its changes parameter: it returns config after the instructions.
func ApplyChanges(config dockerspec.DockerOCIImageConfig, changes []string) (dockerspec.DockerOCIImageConfig, error) {
	config.Env = slices.Clone(config.Env)
	config.OnBuild = slices.Clone(config.OnBuild)
	config.Labels = maps.Clone(config.Labels)
	config.Volumes = maps.Clone(config.Volumes)
	config.ExposedPorts = maps.Clone(config.ExposedPorts)
	err := applyChanges(&config, changes)
	return config, err
}

// logicalLines drops blank lines and comments and joins lines that end in a backslash.
func logicalLines(text string) []string {
	var lines []string
	var joined strings.Builder
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(line, "\r")
		if trimmed := strings.TrimSpace(line); trimmed == "" || strings.HasPrefix(trimmed, "#") {
			continue
		}
		if more, continues := strings.CutSuffix(strings.TrimRight(line, " \t"), `\`); continues {
			joined.WriteString(more)
			continue
		}
		joined.WriteString(line)
		lines = append(lines, strings.TrimSpace(joined.String()))
		joined.Reset()
	}
	if rest := strings.TrimSpace(joined.String()); rest != "" {
		lines = append(lines, rest)
	}
	return lines
}

// changer applies instructions one after the other.
type changer struct {
	config *dockerspec.DockerOCIImageConfig
	cmdSet bool // a CMD came before: ENTRYPOINT leaves it
}

func (c *changer) apply(line string) error {
	name, rest := line, ""
	if cut := strings.IndexAny(line, " \t"); cut >= 0 {
		name, rest = line[:cut], strings.TrimSpace(line[cut:])
	}
	instructions := map[string]func(string) error{
		"CMD": c.cmd, "ENTRYPOINT": c.entrypoint, "ENV": c.env, "EXPOSE": c.expose, "LABEL": c.label, "ONBUILD": c.onBuild,
		"USER": c.user, "VOLUME": c.volume, "WORKDIR": c.workdir, "HEALTHCHECK": c.healthcheck, "STOPSIGNAL": c.stopSignal,
	}
	keyword := strings.ToUpper(name)
	instruction, known := instructions[keyword]
	if !known {
		return fmt.Errorf("%s is not a valid change command", name)
	}
	if rest == "" && keyword != "CMD" && keyword != "ENTRYPOINT" {
		return fmt.Errorf("%s requires at least one argument", keyword)
	}
	if err := instruction(rest); err != nil {
		return fmt.Errorf("%s: %w", keyword, err)
	}
	return nil
}

// expand replaces variables, which are the environment of the configuration as it is now.
func (c *changer) expand(word string) (string, error) {
	return expander{c.lookup}.word(word)
}

func (c *changer) lookup(name string) (string, bool) {
	for _, entry := range c.config.Env {
		if key, value, _ := strings.Cut(entry, "="); key == name {
			return value, true
		}
	}
	return "", false
}

// command reads an array in JSON, or wraps what is none into the shell.
func (c *changer) command(text string) []string {
	if list, ok := jsonArray(text); ok {
		return list
	}
	shell := c.config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), text)
}

func jsonArray(text string) ([]string, bool) {
	if !strings.HasPrefix(text, "[") {
		return nil, false
	}
	var list []any
	if json.Unmarshal([]byte(text), &list) != nil {
		return nil, false
	}
	words := make([]string, 0, len(list))
	for _, item := range list {
		word, ok := item.(string)
		if !ok {
			return nil, false
		}
		words = append(words, word)
	}
	return words, true
}

func (c *changer) cmd(rest string) error {
	c.config.Cmd = nil
	if rest != "" {
		c.config.Cmd = c.command(rest)
	}
	c.cmdSet = len(c.config.Cmd) > 0
	return nil
}

func (c *changer) entrypoint(rest string) error {
	c.config.Entrypoint = nil
	if rest != "" {
		c.config.Entrypoint = c.command(rest)
	}
	if !c.cmdSet {
		c.config.Cmd = nil
	}
	return nil
}

// pairs reads key=value words, or the old form of a key and, behind white space, its value.
func (c *changer) pairs(rest string) ([][2]string, error) {
	words := splitWords(rest)
	if len(words) > 0 && !strings.Contains(words[0], "=") {
		key, value, found := cutSpace(rest)
		if !found {
			return nil, fmt.Errorf("must have two arguments")
		}
		return c.expandPairs([][2]string{{key, value}})
	}
	var pairs [][2]string
	for _, word := range words {
		key, value, found := strings.Cut(word, "=")
		if !found {
			return nil, fmt.Errorf("syntax error - can't find = in %q. Must be of the form: name=value", word)
		}
		pairs = append(pairs, [2]string{key, value})
	}
	return c.expandPairs(pairs)
}

func cutSpace(text string) (before, after string, found bool) {
	cut := strings.IndexAny(text, " \t")
	if cut < 0 {
		return text, "", false
	}
	return text[:cut], strings.TrimSpace(text[cut:]), true
}

func (c *changer) expandPairs(pairs [][2]string) ([][2]string, error) {
	for i, pair := range pairs {
		for j, word := range pair {
			expanded, err := c.expand(word)
			if err != nil {
				return nil, err
			}
			pairs[i][j] = expanded
		}
		if pairs[i][0] == "" {
			return nil, fmt.Errorf("names can not be blank")
		}
	}
	return pairs, nil
}

func (c *changer) env(rest string) error {
	pairs, err := c.pairs(rest)
	if err != nil {
		return err
	}
	for _, pair := range pairs {
		at := slices.IndexFunc(c.config.Env, func(entry string) bool {
			key, _, _ := strings.Cut(entry, "=")
			return key == pair[0]
		})
		if at < 0 {
			c.config.Env = append(c.config.Env, "")
			at = len(c.config.Env) - 1
		}
		c.config.Env[at] = pair[0] + "=" + pair[1]
	}
	return nil
}

func (c *changer) label(rest string) error {
	pairs, err := c.pairs(rest)
	if err != nil {
		return err
	}
	if c.config.Labels == nil {
		c.config.Labels = map[string]string{}
	}
	for _, pair := range pairs {
		c.config.Labels[pair[0]] = pair[1]
	}
	return nil
}

func (c *changer) expose(rest string) error {
	for _, word := range splitWords(rest) {
		expanded, err := c.expand(word)
		if err != nil {
			return err
		}
		// One variable may hold several ports.
		ports, _, err := nat.ParsePortSpecs(strings.Fields(expanded))
		if err != nil {
			return err
		}
		if c.config.ExposedPorts == nil {
			c.config.ExposedPorts = map[string]struct{}{}
		}
		for port := range ports {
			c.config.ExposedPorts[string(port)] = struct{}{}
		}
	}
	return nil
}

func (c *changer) onBuild(rest string) error {
	trigger, _, _ := cutSpace(rest)
	switch trigger := strings.ToUpper(trigger); trigger {
	case "ONBUILD":
		return fmt.Errorf("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
	case "FROM", "MAINTAINER":
		return fmt.Errorf("%s isn't allowed as an ONBUILD trigger", trigger)
	}
	c.config.OnBuild = append(c.config.OnBuild, rest)
	return nil
}

// one expands an instruction's only argument.
func (c *changer) one(rest string) (string, error) {
	words := splitWords(rest)
	if len(words) != 1 {
		return "", fmt.Errorf("requires exactly one argument")
	}
	return c.expand(words[0])
}

func (c *changer) user(rest string) (err error) {
	c.config.User, err = c.one(rest)
	return err
}

func (c *changer) volume(rest string) error {
	words, ok := jsonArray(rest)
	if !ok {
		words = splitWords(rest)
	}
	if c.config.Volumes == nil {
		c.config.Volumes = map[string]struct{}{}
	}
	for _, word := range words {
		volume, err := c.expand(word)
		if err != nil {
			return err
		}
		if strings.TrimSpace(volume) == "" {
			return fmt.Errorf("VOLUME specified can not be an empty string")
		}
		c.config.Volumes[volume] = struct{}{}
	}
	return nil
}

func (c *changer) workdir(rest string) error {
	dir, err := c.expand(rest)
	if err != nil {
		return err
	}
	if dir == "" {
		return fmt.Errorf("cannot normalize nothing")
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", c.config.WorkingDir, dir)
	}
	c.config.WorkingDir = path.Clean(dir)
	return nil
}

func (c *changer) stopSignal(rest string) error {
	name, err := c.one(rest)
	if err != nil {
		return err
	}
	if _, err := signal.ParseSignal(name); err != nil {
		return err
	}
	c.config.StopSignal = name
	return nil
}

func (c *changer) healthcheck(rest string) error {
	check := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(rest, "--") {
		flag, more, _ := cutSpace(rest)
		if err := setHealthFlag(check, flag); err != nil {
			return err
		}
		rest = more
	}
	kind, command, _ := cutSpace(rest)
	switch kind := strings.ToUpper(kind); kind {
	case "NONE":
		if command != "" {
			return fmt.Errorf("NONE takes no arguments")
		}
		check = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
	case "CMD":
		list, isArray := jsonArray(command)
		switch {
		case command == "" || isArray && len(list) == 0:
			return fmt.Errorf("missing command after HEALTHCHECK CMD")
		case isArray:
			check.Test = append([]string{"CMD"}, list...)
		default:
			check.Test = []string{"CMD-SHELL", command}
		}
	default:
		return fmt.Errorf("unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	c.config.Healthcheck = check
	return nil
}

func setHealthFlag(check *dockerspec.HealthcheckConfig, flag string) error {
	name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
	if name == "retries" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return fmt.Errorf("--retries must be at least 0, not %q", value)
		}
		check.Retries = n
		return nil
	}
	durations := map[string]*time.Duration{
		"interval": &check.Interval, "timeout": &check.Timeout,
		"start-period": &check.StartPeriod, "start-interval": &check.StartInterval,
	}
	field, known := durations[name]
	if !known {
		return fmt.Errorf("unknown flag: %s", name)
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return err
	}
	if d != 0 && d < time.Millisecond {
		return fmt.Errorf("interval %q cannot be less than 1ms", name)
	}
	*field = d
	return nil
}
