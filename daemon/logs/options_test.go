package logs_test

import (
	"maps"
	"testing"

	"github.com/containerd/errdefs"

	"stated.dev/stated/daemon/logs"
)

func TestValidate(t *testing.T) {
	type config = map[string]string
	for _, c := range []struct {
		driver string
		config config
		want   string
	}{
		{"json-file", nil, ""},
		{"json-file", config{"max-size": "1m", "max-file": "3", "compress": "true", "labels": "a", "labels-regex": "b", "env": "c", "env-regex": "d", "tag": "e"}, ""},
		{"json-file", config{"mode": "non-blocking", "max-buffer-size": "4m"}, ""},
		{"json-file", config{"x": "1"}, "unknown log opt 'x' for json-file log driver"},
		{"local", config{"max-size": "1m"}, ""},
		{"local", config{"x": "1"}, "unknown log opt 'x' for log driver local"},
		{"none", config{"x": "1"}, ""},
		{"fluentd", nil, "logger: no log driver named 'fluentd' is registered"},
		{"json-file", config{"mode": "x"}, "logger: logging mode not supported: x"},
		{"json-file", config{"max-buffer-size": "1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
	} {
		err := logs.Validate(c.driver, c.config)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s %v: %v", c.driver, c.config, err)
		case c.want != "" && (err == nil || err.Error() != c.want || !errdefs.IsInvalidArgument(err)):
			t.Errorf("%s %v: %v, want %s", c.driver, c.config, err, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	type config = map[string]string
	for _, c := range []struct {
		driver string
		config config
		want   logs.Options
		err    string
	}{
		{"json-file", nil, logs.Options{MaxFiles: 1}, ""},
		{"json-file", config{"max-size": "10k", "max-file": "3", "compress": "true"}, logs.Options{MaxSize: 10000, MaxFiles: 3, Compress: true}, ""},
		{"json-file", config{"max-size": "0"}, logs.Options{}, "max-size must be a positive number"},
		{"json-file", config{"max-file": "0"}, logs.Options{}, "max-file cannot be less than 1"},
		{"json-file", config{"compress": "true"}, logs.Options{}, "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{"local", nil, logs.Options{MaxSize: 20 << 20, MaxFiles: 5, Compress: true}, ""},
		{"local", config{"max-size": "1m", "compress": "false", "max-file": "1"}, logs.Options{MaxSize: 1000000, MaxFiles: 1}, ""},
		{"local", config{"max-file": "1"}, logs.Options{}, "compression cannot be enabled when max file count is 1"},
		{"none", nil, logs.Options{}, ""},
	} {
		o, err := logs.Parse(c.driver, c.config)
		switch {
		case c.err != "":
			if err == nil || err.Error() != c.err {
				t.Errorf("%s %v: %v, want %s", c.driver, c.config, err, c.err)
			}
			continue
		case err != nil:
			t.Errorf("%s %v: %v", c.driver, c.config, err)
			continue
		}
		if o.Driver != c.driver || o.MaxSize != c.want.MaxSize || o.MaxFiles != c.want.MaxFiles || o.Compress != c.want.Compress {
			t.Errorf("%s %v: %+v", c.driver, c.config, o)
		}
	}
}

func TestSelectAttrs(t *testing.T) {
	info := logs.Info{
		ContainerID:        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
		ContainerName:      "/web",
		ContainerImageID:   "sha256:fedcba9876543210",
		ContainerImageName: "nginx:1.27",
		ContainerEnv:       []string{"A=1", "B=2=3", "APP_X=y", "broken"},
		ContainerLabels:    map[string]string{"tier": "front", "com.x": "1", "com.y": "2"},
	}
	for _, c := range []struct {
		config, want map[string]string
	}{
		{nil, nil},
		{map[string]string{"labels": "tier,nope", "env": "B"}, map[string]string{"tier": "front", "B": "2=3"}},
		{map[string]string{"labels-regex": "^com\\.", "env-regex": "^APP_"}, map[string]string{"com.x": "1", "com.y": "2", "APP_X": "y"}},
		{map[string]string{"tag": "{{.Name}}/{{.ID}}/{{.ImageName}}/{{.ImageID}}"}, map[string]string{"tag": "web/0123456789ab/nginx:1.27/fedcba987654"}},
	} {
		got, err := logs.SelectAttrs(c.config, info)
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%v: %v, %v, want %v", c.config, got, err, c.want)
		}
	}
	for _, config := range []map[string]string{{"tag": "{{.Nope}}"}, {"tag": "{{"}, {"env-regex": "("}} {
		if _, err := logs.SelectAttrs(config, info); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", config, err)
		}
	}
}
