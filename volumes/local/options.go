package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
)

const optionsFile = "opts.json"

// options is the content of opts.json.
type options struct {
	MountType   string
	MountOpts   string
	MountDevice string
	Quota       quota
}

type quota struct {
	Size uint64 // bytes; 0: none
}

// needsMount reports whether the data lies on a file system of its own.
func (o *options) needsMount() bool {
	return o != nil && (o.MountDevice != "" || o.MountType != "")
}

// given returns what a user gives to create a volume with these options.
func (o *options) given() map[string]string {
	if o == nil {
		return nil
	}
	given := map[string]string{}
	for key, value := range map[string]string{"type": o.MountType, "o": o.MountOpts, "device": o.MountDevice} {
		if value != "" {
			given[key] = value
		}
	}
	if o.Quota.Size > 0 {
		given["size"] = strconv.FormatUint(o.Quota.Size, 10)
	}
	return given
}

// required lists what an option cannot do without.
func required(option string) []string {
	switch option {
	case "device":
		return []string{"type"}
	case "o":
		return []string{"device", "type"}
	case "type":
		return []string{"device"}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// parseOptions reads what a user gave to create a volume, or returns nil when that is nothing.
func (d *Driver) parseOptions(given map[string]string) (*options, error) {
	if len(given) == 0 {
		return nil, nil
	}
	keys := slices.Sorted(maps.Keys(given))
	for _, key := range keys {
		if !slices.Contains([]string{"type", "o", "device", "size"}, key) {
			return nil, invalid("invalid option: %q", key)
		}
	}
	if given["type"] == "cifs" && given["device"] != "" {
		device, err := url.Parse(given["device"])
		if err != nil {
			return nil, invalid("error parsing mount device url: %v", err)
		}
		if device.Port() != "" {
			return nil, invalid("port not allowed in CIFS device URL, include 'port' in 'o='")
		}
	}
	o := &options{MountType: given["type"], MountOpts: given["o"], MountDevice: given["device"]}
	if text, ok := given["size"]; ok {
		size, err := units.RAMInBytes(text)
		if err != nil {
			return nil, invalid("%v", err)
		}
		if size < 0 { // more than an int64 holds
			return nil, invalid("invalid size: '%s'", text)
		}
		if size > 0 && d.quota == nil {
			return nil, invalid("quota size requested but no quota support")
		}
		o.Quota.Size = uint64(size)
	}
	for _, key := range keys {
		for _, other := range required(key) {
			if _, ok := given[other]; !ok {
				return nil, invalid("missing required option: %q", other)
			}
		}
	}
	return o, nil
}

// decodeOptions reads an opts.json. An empty configuration counts as none: older daemons wrote such files.
func decodeOptions(data []byte) (*options, error) {
	var o options
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	if o == (options{}) {
		return nil, nil
	}
	return &o, nil
}

// save writes opts.json into the volume's directory, durably: an empty one after a power cut would hide what the
// volume is.
func (o *options) save(root string) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("error while persisting volume options: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(root, optionsFile), data, 0o600); err != nil {
		return fmt.Errorf("error while persisting volume options: %w", err)
	}
	return nil
}

// load reads the options, once.
func (v *vol) load() {
	v.once.Do(func() {
		data, err := readRegular(filepath.Join(v.root, optionsFile))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err == nil {
			v.options, err = decodeOptions(data)
		}
		if err != nil {
			v.broken = fmt.Errorf("error while unmarshaling volume options for volume: %s: %w", v.name, err)
		}
	})
}

// readRegular reads a file that may turn out to be a pipe, for example, which would keep its reader waiting.
func readRegular(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a file", path))
	}
	return io.ReadAll(f)
}
