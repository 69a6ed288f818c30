package images_test

import (
	"reflect"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/daemon/images"
)

func configOf(c ocispec.ImageConfig) dockerspec.DockerOCIImageConfig {
	return dockerspec.DockerOCIImageConfig{ImageConfig: c}
}

func TestApplyChanges(t *testing.T) {
	base := configOf(ocispec.ImageConfig{Env: []string{"HOME=/h", "P=80 443"}, Cmd: []string{"old"}, WorkingDir: "/w"})
	cases := []struct {
		changes []string
		want    func(c *dockerspec.DockerOCIImageConfig)
	}{
		{nil, func(*dockerspec.DockerOCIImageConfig) {}},
		{[]string{"# nothing", "", "  "}, func(*dockerspec.DockerOCIImageConfig) {}},
		{[]string{`CMD ["a", "b c"]`}, func(c *dockerspec.DockerOCIImageConfig) { c.Cmd = []string{"a", "b c"} }},
		{[]string{`cmd echo $HOME`}, func(c *dockerspec.DockerOCIImageConfig) { c.Cmd = []string{"/bin/sh", "-c", "echo $HOME"} }},
		{[]string{`CMD [a]`}, func(c *dockerspec.DockerOCIImageConfig) { c.Cmd = []string{"/bin/sh", "-c", "[a]"} }},
		{[]string{`CMD []`}, func(c *dockerspec.DockerOCIImageConfig) { c.Cmd = []string{} }},
		{[]string{`ENTRYPOINT ["e"]`}, func(c *dockerspec.DockerOCIImageConfig) { c.Entrypoint, c.Cmd = []string{"e"}, nil }},
		{[]string{`CMD ["x"]`, `ENTRYPOINT ["e"]`}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Entrypoint, c.Cmd = []string{"e"}, []string{"x"}
		}},
		{[]string{`ENV HOME=/new A="b c" D=$HOME/x E='$HOME' F=${NO:-dflt} G=${HOME:+yes} H=a\ b`}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Env = []string{"HOME=/new", "P=80 443", "A=b c", "D=/h/x", "E=$HOME", "F=dflt", "G=yes", "H=a b"}
		}},
		{[]string{"ENV OLD form with  spaces"}, func(c *dockerspec.DockerOCIImageConfig) { c.Env = append(c.Env, "OLD=form with  spaces") }},
		{[]string{"LABEL a=1 \\\n b=\"two $HOME\"\nLABEL c 3"}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Labels = map[string]string{"a": "1", "b": "two /h", "c": "3"}
		}},
		{[]string{"EXPOSE 53/udp 8000-8001 $P"}, func(c *dockerspec.DockerOCIImageConfig) {
			c.ExposedPorts = map[string]struct{}{"53/udp": {}, "8000/tcp": {}, "8001/tcp": {}, "80/tcp": {}, "443/tcp": {}}
		}},
		{[]string{"ONBUILD RUN make  all"}, func(c *dockerspec.DockerOCIImageConfig) { c.OnBuild = []string{"RUN make  all"} }},
		{[]string{"USER ${U:-nobody}"}, func(c *dockerspec.DockerOCIImageConfig) { c.User = "nobody" }},
		{[]string{"VOLUME /a $HOME/b", `VOLUME ["/c d"]`}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Volumes = map[string]struct{}{"/a": {}, "/h/b": {}, "/c d": {}}
		}},
		{[]string{"WORKDIR sub", "WORKDIR ../x/"}, func(c *dockerspec.DockerOCIImageConfig) { c.WorkingDir = "/w/x" }},
		{[]string{"STOPSIGNAL SIGUSR1"}, func(c *dockerspec.DockerOCIImageConfig) { c.StopSignal = "SIGUSR1" }},
		{[]string{"HEALTHCHECK NONE"}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
		}},
		{[]string{"HEALTHCHECK --interval=5s --timeout=1m --retries=3 --start-period=1s --start-interval=2s CMD curl -f x"}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD-SHELL", "curl -f x"}, Interval: 5 * time.Second,
				Timeout: time.Minute, Retries: 3, StartPeriod: time.Second, StartInterval: 2 * time.Second}
		}},
		{[]string{`HEALTHCHECK CMD ["a"]`}, func(c *dockerspec.DockerOCIImageConfig) {
			c.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "a"}}
		}},
	}
	for _, c := range cases {
		want := configOf(base.ImageConfig)
		want.Env = append([]string(nil), base.Env...)
		c.want(&want)
		got, err := images.ApplyChanges(base, c.changes)
		if err != nil {
			t.Errorf("%q: %v", c.changes, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n got %+v\nwant %+v", c.changes, got, want)
		}
	}
	if base.Env[0] != "HOME=/h" {
		t.Error("the base was changed")
	}
}

func TestApplyChangesErrors(t *testing.T) {
	for change, want := range map[string]string{
		"RUN make":                      "RUN is not a valid change command",
		"from x":                        "from is not a valid change command",
		"ENV":                           "ENV requires at least one argument",
		"ENV A":                         "ENV: must have two arguments",
		"ENV A=1 B":                     `ENV: syntax error - can't find = in "B". Must be of the form: name=value`,
		"ENV =x":                        "ENV: names can not be blank",
		"LABEL a='x":                    "LABEL: unexpected end of statement while looking for matching single-quote",
		"LABEL a=\"x":                   "LABEL: unexpected end of statement while looking for matching double-quote",
		"LABEL a=${x":                   "LABEL: syntax error: missing '}' in ${x",
		"USER a b":                      "USER: requires exactly one argument",
		"ONBUILD onbuild x":             "ONBUILD: chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
		"ONBUILD FROM x":                "ONBUILD: FROM isn't allowed as an ONBUILD trigger",
		"STOPSIGNAL SIGNOPE":            "STOPSIGNAL: invalid signal: SIGNOPE",
		"HEALTHCHECK CMD":               "HEALTHCHECK: missing command after HEALTHCHECK CMD",
		"HEALTHCHECK RUN x":             `HEALTHCHECK: unknown type "RUN" in HEALTHCHECK (try CMD)`,
		"HEALTHCHECK --what=1 CMD x":    "HEALTHCHECK: unknown flag: what",
		"HEALTHCHECK --retries=-1 NONE": `HEALTHCHECK: --retries must be at least 0, not "-1"`,
		"VOLUME [\"\"]":                 "VOLUME: VOLUME specified can not be an empty string",
	} {
		if _, err := images.ApplyChanges(dockerspec.DockerOCIImageConfig{}, []string{change}); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %q", change, err, want)
		}
	}
}

func FuzzApplyChanges(f *testing.F) {
	for _, seed := range []string{
		`CMD ["a"]`, "ENV A=1 B=\"$A ${C:-${D:+x}}\"\\\n E='f'", "EXPOSE 1-9/udp $A", "HEALTHCHECK --interval=1s CMD x", "WORKDIR ../..", "LABEL a b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, change string) {
		if len(change) > 1<<12 {
			return
		}
		base := configOf(ocispec.ImageConfig{Env: []string{"A=1"}, WorkingDir: "/w"})
		if got, err := images.ApplyChanges(base, []string{change}); err == nil && got.WorkingDir[0] != '/' {
			t.Errorf("working directory %q", got.WorkingDir)
		}
	})
}
