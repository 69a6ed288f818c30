package network

import (
	"encoding/json"
	"testing"

	"stated.dev/stated/network/datastore"
)

// What we do not know comes out as it went in, and what old daemons wrote is understood.
func TestOldDocuments(t *testing.T) {
	n := &networkObject{}
	if err := n.SetValue([]byte(`{"id":"n","name":"old","networkType":"bridge","future":{"a":[1]},"enableIPv6":false,"postIPv6":false}`)); err != nil {
		t.Fatal(err)
	}
	if !n.doc.hasIPv4() || n.doc.Scope != "local" || n.doc.Persist {
		t.Errorf("%+v", n.doc)
	}
	data, err := n.Value()
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]json.RawMessage
	if err := json.Unmarshal(data, &back); err != nil || string(back["future"]) != `{"a":[1]}` {
		t.Errorf("%s, %v", data, err)
	}
	e := &endpointObject{network: "n"}
	if err := e.SetValue([]byte(`{"id":"e","name":"web","anonymous":false,"myAliases":["x"],"locator":"","ep_iface":{"addr":"<nil>","mac":"02:42:ac:11:00:02","srcName":"veth1","v4PoolID":"LocalDefault/172.17.0.0/16"},"virtualIP":null,"exposed_ports":null}`)); err != nil {
		t.Fatal(err)
	}
	if len(e.doc.DNSNames) != 2 || e.doc.DNSNames[1] != "x" || e.doc.addr4().IsValid() || e.doc.mac() == nil {
		t.Errorf("%+v", e.doc)
	}
	s := &sandboxObject{}
	if err := s.SetValue([]byte(`{"ID":"s","Cid":"c","Eps":[],"ExtDNS":["192.0.2.1"]}`)); err != nil || len(s.doc.ExtDNS2) != 1 {
		t.Errorf("%+v, %v", s.doc, err)
	}
}

// Any bytes are refused or decoded, and what was decoded is stable.
func FuzzObjects(f *testing.F) {
	f.Add([]byte(`{"id":"n","name":"x","ipamV4Info":"[{\"IPAMData\":\"{\\\"Pool\\\":\\\"10.0.0.0/8\\\"}\",\"PoolID\":\"LocalDefault/10.0.0.0/8\"}]","generic":{"com.docker.network.generic":{"a":1}}}`))
	f.Add([]byte(`{"id":"e","ep_iface":{"addr":"10.0.0.1/8","mac":"x"},"joinInfo":null,"generic":{"com.docker.network.portmap":[{}]}}`))
	f.Add([]byte(`{"ID":"s","Eps":[{"Eid":"e","Nid":"n"}],"EpPriority":{"e":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fresh := range []func() datastore.Object{
			func() datastore.Object { return &networkObject{} },
			func() datastore.Object { return &endpointObject{network: "n"} },
			func() datastore.Object { return &sandboxObject{} },
		} {
			o := fresh()
			if o.SetValue(data) != nil {
				continue
			}
			once, err := o.Value()
			if err != nil {
				t.Fatalf("encode: %v", err)
			}
			again := fresh()
			if err := again.SetValue(once); err != nil {
				t.Fatalf("decode what was encoded: %v: %s", err, once)
			}
			twice, err := again.Value()
			if err != nil || string(twice) != string(once) {
				t.Fatalf("%v: %s\nthen %s", err, once, twice)
			}
			if n, ok := o.(*networkObject); ok {
				driverNetwork(&n.doc)
			}
		}
	})
}
