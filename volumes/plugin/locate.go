package plugin

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// maxSpec bounds a .spec or .json file, in bytes.
const maxSpec = 64 << 10

// address is where a plug-in listens.
type address struct {
	network string // "unix" or "tcp"
	addr    string // an absolute path, or host:port
	tls     *tlsFiles
}

// tlsFiles is TLSConfig of a .json file.
type tlsFiles struct {
	InsecureSkipVerify bool
	CAFile             string
	CertFile           string
	KeyFile            string
}

// locate returns the address of the plug-in called name: of its socket, or from its file. The first place that has one
// decides.
func (p *Plugins) locate(name string) (address, error) {
	for _, dir := range p.opts.SocketDirs {
		for _, base := range []string{filepath.Join(dir, name), filepath.Join(dir, name, name)} {
			if isSocket(base + ".sock") {
				return address{network: "unix", addr: base + ".sock"}, nil
			}
		}
	}
	for _, dir := range p.opts.SpecDirs {
		for _, base := range []string{filepath.Join(dir, name), filepath.Join(dir, name, name)} {
			for _, kind := range specKinds {
				data, err := readSpec(base + kind.suffix)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				var addr address
				if err == nil {
					addr, err = kind.parse(data)
				}
				if err != nil {
					return address{}, fmt.Errorf("read %s: %w", base+kind.suffix, err)
				}
				return addr, nil
			}
		}
	}
	return address{}, errdefs.ErrNotFound
}

// specKinds are the files that tell an address, in the order in which they count.
var specKinds = []struct {
	suffix string
	parse  func([]byte) (address, error)
}{{".spec", parseSpec}, {".json", parseJSON}}

// names returns what the directories hold, sorted. Whether it can be used is another question.
func (p *Plugins) names() []string {
	names := map[string]bool{}
	for _, dir := range p.opts.SocketDirs {
		scan(dir, names, ".sock")
	}
	for _, dir := range p.opts.SpecDirs {
		scan(dir, names, ".spec", ".json")
	}
	return slices.Sorted(maps.Keys(names))
}

// scan adds the names that dir has files for.
func scan(dir string, names map[string]bool, suffixes ...string) {
	list, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			slog.Warn("cannot look for volume plug-ins", "err", err)
		}
		return
	}
	for _, e := range list {
		for _, suffix := range suffixes {
			name, direct := strings.CutSuffix(e.Name(), suffix)
			path := filepath.Join(dir, e.Name())
			if !direct {
				path = filepath.Join(path, e.Name()+suffix)
			}
			if !nameFormat.MatchString(name) {
				continue
			}
			if info, err := os.Stat(path); err == nil && !info.IsDir() {
				names[name] = true
			}
		}
	}
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

func readSpec(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err == nil && len(data) > maxSpec {
		err = fmt.Errorf("it is longer than %d bytes", maxSpec)
	}
	return data, err
}

// parseSpec reads the content of a .spec file: one URL.
func parseSpec(data []byte) (address, error) {
	return parseAddress(string(bytes.TrimSpace(data)))
}

// parseJSON reads the content of a .json file. The plug-in's name is the file's, whatever Name says.
func parseJSON(data []byte) (address, error) {
	var doc struct {
		Name      string
		Addr      string
		TLSConfig *tlsFiles
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return address{}, err
	}
	addr, err := parseAddress(doc.Addr)
	if addr.network == "tcp" {
		addr.tls = doc.TLSConfig
	}
	return addr, err
}

// parseAddress reads unix:///path or tcp://host:port.
func parseAddress(text string) (address, error) {
	u, err := url.Parse(text)
	if err != nil {
		return address{}, err
	}
	bad := fmt.Errorf("address %q: want unix:///PATH or tcp://HOST:PORT", text)
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return address{}, bad
	}
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) || strings.ContainsRune(u.Path, 0) {
			return address{}, bad
		}
		return address{network: "unix", addr: u.Path}, nil
	case "tcp":
		host, port, err := net.SplitHostPort(u.Host)
		if err != nil || host == "" || port == "" || strings.Trim(u.Path, "/") != "" {
			return address{}, bad
		}
		return address{network: "tcp", addr: u.Host}, nil
	}
	return address{}, bad
}

// config reads the files. Without a CA file the system's authorities decide who the plug-in may be.
func (t *tlsFiles) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: t.InsecureSkipVerify}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read CAFile: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CAFile: %s holds no certificate", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read CertFile and KeyFile: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}
