package sysinfo

import (
	"fmt"
	"strconv"
	"strings"
)

// maxListed bounds the numbers a list may name, so that "0-9223372036854775807" cannot eat the memory. The kernel
// itself knows at most 8192 CPUs.
const maxListed = 8192

// A numberSet is the parsed form of a kernel list such as "0-2,7".
type numberSet map[int]struct{}

// ParseList reads a list of CPUs or memory nodes as the kernel writes it ("0-2,7"). The empty string is an empty set.
func ParseList(s string) (map[int]struct{}, error) {
	return parseList(s)
}

func parseList(s string) (numberSet, error) {
	set := numberSet{}
	if s == "" {
		return set, nil
	}
	for item := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(item, "-")
		lo, err := strconv.Atoi(first)
		if err != nil || lo < 0 {
			return nil, fmt.Errorf("invalid format: %s", s)
		}
		hi := lo
		if isRange {
			if hi, err = strconv.Atoi(last); err != nil || hi < lo {
				return nil, fmt.Errorf("invalid format: %s", s)
			}
		}
		if hi > maxListed {
			return nil, fmt.Errorf("value of out range, maximum is %d", maxListed)
		}
		for n := lo; n <= hi; n++ {
			set[n] = struct{}{}
		}
	}
	return set, nil
}

// CpusAvailable reports whether every CPU of a list is one that containers may use.
func (i Info) CpusAvailable(list string) (bool, error) { return within(list, i.Cpus) }

// MemsAvailable reports whether every memory node of a list is one that containers may use.
func (i Info) MemsAvailable(list string) (bool, error) { return within(list, i.Mems) }

func within(requested, available string) (bool, error) {
	want, err := parseList(requested)
	if err != nil {
		return false, err
	}
	have, err := parseList(available)
	if err != nil {
		return false, err
	}
	for n := range want {
		if _, ok := have[n]; !ok {
			return false, nil
		}
	}
	return true, nil
}
