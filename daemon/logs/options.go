package logs

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
)

// The names of the drivers this package knows.
const (
	JSONFile = "json-file"
	Local    = "local"
	None     = "none" // writes nothing and cannot be read
)

// The defaults of the driver local, as Docker's.
const (
	localMaxSize  = 20 << 20
	localMaxFiles = 5
)

// Options says where and how records are kept.
type Options struct {
	Driver   string
	Path     string // absolute path of the live file; rotated files are Path.1, Path.2 …, or Path.1.gz …
	MaxSize  int64  // bytes at which the file is rotated before the next record; 0 means never
	MaxFiles int    // number of files kept, the live one included; less than 1 means 1
	Compress bool   // gzip rotated files
	// Attrs is stored with each record.
	Attrs map[string]string
}

func (o Options) maxFiles() int { return max(o.MaxFiles, 1) }

// Validate checks the driver's name and the option keys the way Docker does when a container is created. The values
// of the options are checked by Parse.
func Validate(driver string, config map[string]string) error {
	if driver == None {
		return nil
	}
	switch config["mode"] {
	case "", "blocking", "non-blocking":
	default:
		return invalid("logger: logging mode not supported: %s", config["mode"])
	}
	if size, ok := config["max-buffer-size"]; ok {
		if config["mode"] != "non-blocking" {
			return invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if _, err := units.RAMInBytes(size); err != nil {
			return invalid("error parsing option max-buffer-size: %v", err)
		}
	}
	var where string
	switch driver {
	case JSONFile:
		where = "json-file log driver"
	case Local:
		where = "log driver local"
	default:
		return invalid("logger: no log driver named '%s' is registered", driver)
	}
	for _, key := range slices.Sorted(maps.Keys(config)) {
		switch key {
		case "max-file", "max-size", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
		default:
			return invalid("unknown log opt '%s' for %s", key, where)
		}
	}
	return nil
}

// Parse turns a container's log configuration into Options, without Path and Attrs. It reports what Docker reports
// when the container is started.
func Parse(driver string, config map[string]string) (Options, error) {
	if err := Validate(driver, config); err != nil {
		return Options{}, err
	}
	o := Options{Driver: driver}
	var err error
	switch driver {
	case JSONFile:
		err = parseJSONFile(config, &o)
	case Local:
		err = parseLocal(config, &o)
	}
	if err != nil {
		return Options{}, err
	}
	return o, nil
}

func parseJSONFile(config map[string]string, o *Options) error {
	o.MaxFiles = 1
	if s, ok := config["max-size"]; ok {
		size, err := units.FromHumanSize(s)
		if err != nil {
			return invalid("%v", err)
		}
		if size <= 0 {
			return invalid("max-size must be a positive number")
		}
		o.MaxSize = size
	}
	if s, ok := config["max-file"]; ok {
		n, err := strconv.Atoi(s)
		if err != nil {
			return invalid("%v", err)
		}
		if n < 1 {
			return invalid("max-file cannot be less than 1")
		}
		o.MaxFiles = n
	}
	if s, ok := config["compress"]; ok {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return invalid("%v", err)
		}
		if on && (o.MaxFiles == 1 || o.MaxSize == 0) {
			return invalid("compress cannot be true when max-file is less than 2 or max-size is not set")
		}
		o.Compress = on
	}
	return nil
}

func parseLocal(config map[string]string, o *Options) error {
	o.MaxSize, o.MaxFiles, o.Compress = localMaxSize, localMaxFiles, true
	if s, ok := config["max-size"]; ok {
		size, err := units.FromHumanSize(s)
		if err != nil {
			return invalid("invalid value for max-size: %s: %v", s, err)
		}
		if size < 0 {
			return invalid("max-size must not be negative")
		}
		o.MaxSize = size
	}
	if s, ok := config["max-file"]; ok {
		n, err := strconv.Atoi(s)
		if err != nil {
			return invalid("invalid value for max-file: %s: %v", s, err)
		}
		if n < 0 {
			return invalid("max-file must not be negative")
		}
		o.MaxFiles = n
	}
	if s, ok := config["compress"]; ok {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return invalid("invalid boolean value for compress: %v", err)
		}
		o.Compress = on
	}
	if o.Compress && o.MaxFiles <= 1 {
		return invalid("compression cannot be enabled when max file count is 1")
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}
