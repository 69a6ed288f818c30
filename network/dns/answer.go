package dns

import (
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	ttl        = 600 // seconds, as Docker's
	minMessage = 512
	maxMessage = 65535
	headerSize = 12
	// ednsSize is what we say we can receive over UDP.
	ednsSize = 4096
)

// query is one question of a client.
type query struct {
	raw      []byte
	header   dnsmessage.Header
	question dnsmessage.Question
	end      int // of the question in raw
	edns     bool
	limit    int // of the answer's size
	bad      dnsmessage.RCode
}

// parseQuery reports false for what is not to be answered at all.
func parseQuery(raw []byte) (*query, bool) {
	q := &query{raw: raw, limit: minMessage}
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(raw); err != nil || q.header.Response {
		return nil, false
	}
	if q.header.OpCode != 0 {
		q.bad = dnsmessage.RCodeNotImplemented
		return q, true
	}
	if q.question, err = p.Question(); err != nil {
		q.bad = dnsmessage.RCodeFormatError
		return q, true
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		q.bad = dnsmessage.RCodeFormatError // nobody answers two questions at once
		return q, true
	}
	q.end = questionEnd(raw)
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		q.bad = dnsmessage.RCodeFormatError
		return q, true
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			break
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns = true
			q.limit = max(int(h.Class), minMessage)
		}
		if p.SkipAdditional() != nil {
			break
		}
	}
	return q, true
}

// questionEnd returns where the first question ends. It is known to be well-formed, and nothing comes before it that
// its name could point to.
func questionEnd(raw []byte) int {
	i := headerSize
	for i < len(raw) && raw[i] != 0 {
		if raw[i] >= 0xc0 {
			return min(i+2+4, len(raw))
		}
		i += 1 + int(raw[i])
	}
	return min(i+1+4, len(raw))
}

// answer returns the reply that the zones give, or nil when others are to be asked.
func (c *config) answer(q *query) []byte {
	if q.bad != 0 {
		return q.reply(q.bad, nil, "")
	}
	if q.question.Class != dnsmessage.ClassINET {
		return nil
	}
	name := foldName(q.question.Name.String())
	if q.question.Type == dnsmessage.TypePTR {
		return c.answerReverse(q, name)
	}
	var found []netip.Addr
	known := false
	for _, zone := range c.zones {
		addrs, here := zone.addrs(name)
		known = known || here
		addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool {
			return q.question.Type != typeOf(a)
		})
		if len(addrs) > 0 {
			found = addrs
			break
		}
	}
	switch {
	case known:
		rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
		return q.reply(dnsmessage.RCodeSuccess, found, "")
	case c.dotsOnly && !strings.Contains(name, "."):
		return q.reply(dnsmessage.RCodeNameError, nil, "") // the client asks again with a search domain
	case len(c.upstreams) == 0:
		return q.fail()
	}
	return nil
}

func typeOf(a netip.Addr) dnsmessage.Type {
	if a.Is4() {
		return dnsmessage.TypeA
	}
	return dnsmessage.TypeAAAA
}

func (c *config) answerReverse(q *query, name string) []byte {
	if addr, ok := reverseAddr(name); ok {
		for _, zone := range c.zones {
			if target := zone.name(addr); target != "" {
				return q.reply(dnsmessage.RCodeSuccess, nil, target)
			}
		}
	}
	if len(c.upstreams) == 0 {
		return q.fail()
	}
	return nil
}

// reverseAddr reads 2.0.18.172.in-addr.arpa and its like for IPv6.
func reverseAddr(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		slices.Reverse(parts)
		addr, err := netip.ParseAddr(strings.Join(parts, "."))
		return addr, err == nil
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(rest) != 63 {
		return netip.Addr{}, false
	}
	var digits [32]byte
	for i := range digits {
		if i > 0 && rest[2*i-1] != '.' {
			return netip.Addr{}, false
		}
		digits[31-i] = rest[2*i]
	}
	var addr [16]byte
	if _, err := hex.Decode(addr[:], digits[:]); err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(addr).Unmap(), true
}

// fail is the reply when nobody can be asked.
func (q *query) fail() []byte { return q.reply(dnsmessage.RCodeServerFailure, nil, "") }

// reply builds the reply to q: with addresses, or with the name that a reverse look-up gives, or with neither. What
// does not fit is left out, and the reply marked, so that the client asks again over TCP.
func (q *query) reply(code dnsmessage.RCode, addrs []netip.Addr, target string) []byte {
	const (
		fixed   = 12 // of a record: pointer to the name, type, class, time to live, length
		optSize = 11
	)
	room := q.limit - max(q.end, headerSize) - optSize
	fit := 0
	for fit < len(addrs) && room >= fixed+addrs[fit].BitLen()/8 {
		room -= fixed + addrs[fit].BitLen()/8
		fit++
	}
	b := dnsmessage.NewBuilder(make([]byte, 0, minMessage), dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RCode: code,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true, Truncated: fit < len(addrs),
	})
	b.EnableCompression()
	err := q.fill(&b, addrs[:fit], target)
	if err == nil {
		if message, err := b.Finish(); err == nil {
			return message
		}
	}
	// Only a name that cannot be a name on the wire leads here.
	header := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, RCode: dnsmessage.RCodeServerFailure,
		RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
	})
	message, _ := header.Finish() // a header alone always fits
	return message
}

func (q *query) fill(b *dnsmessage.Builder, addrs []netip.Addr, target string) error {
	if q.end == 0 {
		return nil // the question could not be read
	}
	if err := b.StartQuestions(); err != nil {
		return err
	}
	if err := b.Question(q.question); err != nil {
		return err
	}
	if err := b.StartAnswers(); err != nil {
		return err
	}
	h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
	for _, a := range addrs {
		var err error
		if a.Is4() {
			err = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		} else {
			err = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
		if err != nil {
			return err
		}
	}
	if target != "" {
		name, err := dnsmessage.NewName(target + ".")
		if err != nil {
			return err
		}
		if err := b.PTRResource(h, dnsmessage.PTRResource{PTR: name}); err != nil {
			return err
		}
	}
	if !q.edns {
		return nil
	}
	if err := b.StartAdditionals(); err != nil {
		return err
	}
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false); err != nil {
		return err
	}
	return b.OPTResource(opt, dnsmessage.OPTResource{})
}
