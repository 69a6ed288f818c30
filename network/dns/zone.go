package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"stated.dev/stated/internal/atomicfile"
)

// Zone is what a network's names mean. Names are compared without regard to case; the file has them in lower case.
type Zone struct {
	Records map[string][]netip.Addr
	// Reverse maps an address, as netip.Addr.String writes it, to the name it resolves to.
	Reverse map[string]string
}

// A zone file is this line, then one line for each address of a name, "a NAME ADDRESS", and for each name of an
// address, "p ADDRESS NAME", sorted by bytes and each only once. Every line ends with a newline.
const (
	zoneHeader  = "stated-zone 1\n"
	forwardKey  = "a "
	reverseKey  = "p "
	maxZoneName = 253 // what fits into a question
	// maxZoneLine is more than the longest line: a name, an address with its IPv6 zone, and what is between them.
	maxZoneLine = 512
)

// WriteZone replaces the zone file. It does not wait for a disk: zones live in memory and are written anew at start.
// Names that no query can carry are left out.
func WriteZone(path string, z Zone) error {
	if err := atomicfile.WriteNoSync(path, z.encode(), 0o644); err != nil {
		return fmt.Errorf("write zone: %w", err)
	}
	return nil
}

// ReadZone reads a whole zone file.
func ReadZone(path string) (Zone, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Zone{}, fmt.Errorf("read zone: %w", err)
	}
	z, err := parseZone(data)
	if err != nil {
		return Zone{}, fmt.Errorf("read zone %s: %w", path, err)
	}
	return z, nil
}

func (z Zone) encode() []byte {
	var lines []string
	for name, addrs := range z.Records {
		if name = foldName(name); !askable(name) {
			continue
		}
		for _, addr := range addrs {
			if addr.IsValid() {
				lines = append(lines, forwardKey+name+" "+addr.Unmap().WithZone("").String()+"\n")
			}
		}
	}
	for text, name := range z.Reverse {
		addr, err := netip.ParseAddr(text)
		if name = foldName(name); err != nil || !askable(name) {
			continue
		}
		lines = append(lines, reverseKey+addr.Unmap().WithZone("").String()+" "+name+"\n")
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	size := len(zoneHeader)
	for _, line := range lines {
		size += len(line)
	}
	data := append(make([]byte, 0, size), zoneHeader...)
	for _, line := range lines {
		data = append(data, line...)
	}
	return data
}

// foldName puts a name into the form it has in a zone: lower case, without the final dot.
func foldName(name string) string {
	name = strings.TrimSuffix(name, ".")
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				if c := b[i]; c >= 'A' && c <= 'Z' {
					b[i] = c + ('a' - 'A')
				}
			}
			return string(b)
		}
	}
	return name
}

func askable(name string) bool {
	if name == "" || len(name) > maxZoneName {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func parseZone(data []byte) (Zone, error) {
	rest, ok := bytes.CutPrefix(data, []byte(zoneHeader))
	if !ok {
		return Zone{}, errors.New("not a zone file")
	}
	z := Zone{Records: map[string][]netip.Addr{}, Reverse: map[string]string{}}
	var previous []byte
	for number := 2; len(rest) > 0; number++ {
		line, after, ok := bytes.Cut(rest, []byte("\n"))
		if !ok {
			return Zone{}, fmt.Errorf("line %d is cut off", number)
		}
		if bytes.Compare(line, previous) <= 0 {
			return Zone{}, fmt.Errorf("line %d is out of order", number)
		}
		if err := z.add(line); err != nil {
			return Zone{}, fmt.Errorf("line %d: %w", number, err)
		}
		previous, rest = line, after
	}
	return z, nil
}

func (z Zone) add(line []byte) error {
	if len(line) > maxZoneLine {
		return errors.New("too long")
	}
	fields := strings.Split(string(line), " ")
	if len(fields) != 3 {
		return errors.New("not three fields")
	}
	var name, text string
	switch fields[0] + " " {
	case forwardKey:
		name, text = fields[1], fields[2]
	case reverseKey:
		text, name = fields[1], fields[2]
	default:
		return errors.New("unknown kind of record")
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.String() != text {
		return errors.New("not an address")
	}
	if !askable(name) || foldName(name) != name {
		return errors.New("not a name")
	}
	if fields[0]+" " == forwardKey {
		z.Records[name] = append(z.Records[name], addr)
		return nil
	}
	if _, twice := z.Reverse[text]; twice {
		return errors.New("address has a name already")
	}
	z.Reverse[text] = name
	return nil
}
