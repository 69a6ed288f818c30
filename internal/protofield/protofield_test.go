package protofield_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"stated.dev/stated/internal/protofield"
)

func TestEach(t *testing.T) {
	var m []byte
	m = protowire.AppendVarint(protowire.AppendTag(m, 1, protowire.VarintType), 300)
	m = protowire.AppendFixed64(protowire.AppendTag(m, 2, protowire.Fixed64Type), 7)
	m = protowire.AppendBytes(protowire.AppendTag(m, 3, protowire.BytesType), []byte("text"))
	m = protowire.AppendBytes(protowire.AppendTag(m, 3, protowire.BytesType), nil)
	seen := ""
	see := func(field protowire.Number, value uint64, bytes []byte) error {
		seen += fmt.Sprintf("%d %d %q %v;", field, value, bytes, bytes == nil)
		return nil
	}
	if err := protofield.Each(m, see); err != nil || seen != `1 300 "" true;3 0 "text" false;3 0 "" false;` {
		t.Errorf("%s (%v)", seen, err)
	}
	for n := 1; n < len(m)-2; n++ { // cut anywhere but between two fields
		seen = ""
		if err := protofield.Each(m[:n], see); err == nil && n != 3 && n != 12 && n != 18 {
			t.Errorf("cut after %d bytes: %s", n, seen)
		}
	}
	stop := errors.New("enough")
	if err := protofield.Each(m, func(protowire.Number, uint64, []byte) error { return stop }); err != stop {
		t.Errorf("%v", err)
	}
}
