// Package protofield takes protobuf messages apart for those who need a few fields of somebody else's message, and have no
// types of it.
package protofield

import "google.golang.org/protobuf/encoding/protowire"

// Each calls f with every number and every string of bytes of a message, in their order; of fields of other kinds it says
// nothing. The bytes are those of the message, nil for a number. An error is f's, or says that the message is damaged.
func Each(message []byte, f func(field protowire.Number, value uint64, bytes []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		var value uint64
		var bytes []byte
		switch kind {
		case protowire.VarintType:
			value, n = protowire.ConsumeVarint(message)
		case protowire.BytesType:
			bytes, n = protowire.ConsumeBytes(message)
		default:
			n = protowire.ConsumeFieldValue(field, kind, message)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.VarintType || kind == protowire.BytesType {
			if err := f(field, value, bytes); err != nil {
				return err
			}
		}
		message = message[n:]
	}
	return nil
}
