package networks_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/router/networks"
	"stated.dev/stated/internal/filters"
)

// backend answers with what it has and notes what it was asked.
type backend struct {
	created api.CreateRequest
	asked   []string
}

func example() api.Inspect {
	n := api.Inspect{}
	n.Name, n.ID, n.Driver, n.Scope, n.EnableIPv4 = "one", "abc", "bridge", "local", true
	n.Created = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	n.IPAM = api.IPAM{Driver: "default", Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1")}}}
	n.Options, n.Labels = map[string]string{}, map[string]string{}
	n.Containers = map[string]api.EndpointResource{}
	return n
}

func (b *backend) List(_ context.Context, f filters.Args) ([]api.Inspect, error) {
	if f.Match("name", "one") {
		return []api.Inspect{example()}, nil
	}
	return nil, nil
}

func (b *backend) Inspect(_ context.Context, ref string, req networks.InspectRequest) (api.Inspect, error) {
	if ref != "one" {
		return api.Inspect{}, errdefs.ErrNotFound.WithMessage("network " + ref + " not found")
	}
	return example(), nil
}

func (b *backend) Create(_ context.Context, req api.CreateRequest) (string, string, error) {
	b.created = req
	return "abc", "", nil
}

func (b *backend) Remove(_ context.Context, ref string) error {
	b.asked = append(b.asked, "remove "+ref)
	return nil
}

func (b *backend) Prune(context.Context, filters.Args) ([]string, error) { return nil, nil }

func (b *backend) Connect(_ context.Context, ref string, req api.ConnectRequest) error {
	b.asked = append(b.asked, "connect "+ref+" "+req.Container)
	return nil
}

func (b *backend) Disconnect(_ context.Context, ref string, req api.DisconnectRequest) error {
	b.asked = append(b.asked, "disconnect "+ref+" "+req.Container)
	return nil
}

func serve(t *testing.T, b *backend, method, path, body string) (status int, answer string) {
	t.Helper()
	mux := http.NewServeMux()
	for _, r := range networks.Routes(b) {
		mux.HandleFunc(r.Method+" "+r.Path, func(w http.ResponseWriter, req *http.Request) {
			if err := r.Handler(w, req); err != nil {
				code := http.StatusInternalServerError
				switch {
				case errdefs.IsInvalidArgument(err):
					code = http.StatusBadRequest
				case errdefs.IsNotFound(err):
					code = http.StatusNotFound
				}
				http.Error(w, err.Error(), code)
			}
		})
	}
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, req)
	return w.Code, strings.TrimSpace(w.Body.String())
}

const wireExample = `{"Name":"one","Id":"abc","Created":"2026-01-02T03:04:05.000000006Z","Scope":"local","Driver":"bridge","EnableIPv4":true,"EnableIPv6":false,` +
	`"IPAM":{"Driver":"default","Options":null,"Config":[{"Subnet":"10.0.0.0/24","Gateway":"10.0.0.1"}]},"Internal":false,"Attachable":false,"Ingress":false,` +
	`"ConfigFrom":{"Network":""},"ConfigOnly":false,"Options":{},"Labels":{},"Containers":{}}`

func TestRoutes(t *testing.T) {
	for _, c := range []struct {
		method, path, body string
		status             int
		answer             string
	}{
		{"GET", "/networks", "", 200, "[" + wireExample + "]"},
		{"GET", "/networks?filters=%7B%22name%22%3A%5B%22two%22%5D%7D", "", 200, "[]"},
		{"GET", "/networks?filters=x", "", 400, "invalid filter"},
		{"GET", "/networks/one", "", 200, wireExample},
		{"GET", "/networks/two", "", 404, "network two not found"},
		{"GET", "/networks/one?verbose=perhaps", "", 400, "invalid value for verbose: perhaps"},
		{"POST", "/networks/create", `{"Name":"one"}`, 201, `{"Id":"abc","Warning":""}`},
		{"POST", "/networks/create", `{"Name":`, 400, "invalid JSON: unexpected EOF"},
		{"POST", "/networks/create", `{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.0/33"}]}}`, 400, "invalid network config:\ninvalid subnet 10.0.0.0/33: invalid CIDR block notation"},
		{"POST", "/networks/one/connect", `{"Container":"c"}`, 200, ""},
		{"POST", "/networks/one/disconnect", `{"Container":"c","Force":true}`, 200, ""},
		{"POST", "/networks/prune", "", 200, `{"NetworksDeleted":null}`},
		{"DELETE", "/networks/one", "", 204, ""},
	} {
		status, answer := serve(t, &backend{}, c.method, c.path, c.body)
		if status != c.status || answer != c.answer {
			t.Errorf("%s %s: %d %s\nwant %d %s", c.method, c.path, status, answer, c.status, c.answer)
		}
	}
}

func TestCreateAddresses(t *testing.T) {
	b := &backend{}
	status, answer := serve(t, b, "POST", "/networks/create", `{"Name":"x","EnableIPv6":true,"IPAM":{"Driver":"default","Config":[{"Subnet":"10.0.0.0/24","IPRange":"10.0.0.128/25","Gateway":"10.0.0.9","AuxiliaryAddresses":{"a":"10.0.0.7"}}]}}`)
	if status != 201 {
		t.Fatalf("%d %s", status, answer)
	}
	got := b.created.IPAM.Config[0]
	if got.Subnet.String() != "10.0.0.0/24" || got.IPRange.String() != "10.0.0.128/25" || got.Gateway.String() != "10.0.0.9" || got.AuxAddress["a"].String() != "10.0.0.7" || !*b.created.EnableIPv6 {
		t.Errorf("%+v", b.created)
	}
}

func FuzzCreate(f *testing.F) {
	f.Add(`{"Name":"x","IPAM":{"Config":[{"Subnet":"10.0.0.0/24","AuxiliaryAddresses":{"a":"::1"}}]}}`)
	f.Fuzz(func(t *testing.T, body string) {
		if status, answer := serve(t, &backend{}, "POST", "/networks/create", body); status >= 500 {
			t.Errorf("%d %s", status, answer)
		}
	})
}
