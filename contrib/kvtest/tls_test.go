package kvtest

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"stated.dev/stated/internal/testenv/selfsigned"
)

// TestTLS: with --tlsverify the port answers nobody without a certificate of the authority, and users still need their
// passwords.
func TestTLS(t *testing.T) {
	cert, pool := selfsigned.Pair(t)
	stranger, _ := selfsigned.Pair(t)
	h := newHost(t)
	certFile, keyFile := selfsigned.Files(t, filepath.Dir(h.Socket), cert)
	h.Flags = append(h.Flags, "--tlsverify", "--tlscacert", certFile, "--tlscert", certFile, "--tlskey", keyFile)
	h.start()

	client := func(certs ...tls.Certificate) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: certs}}
		t.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	known := client(cert)
	ask := func(method, path, body, user, password string) (status int, answer string) {
		t.Helper()
		r, err := http.NewRequest(method, "https://"+h.listen+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if user != "" {
			r.SetBasicAuth(user, password)
		}
		a, err := known.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Body.Close()
		text, err := io.ReadAll(a.Body)
		if err != nil {
			t.Fatal(err)
		}
		return a.StatusCode, string(text)
	}
	want := func(status int, part, method, path, body, user, password string) {
		t.Helper()
		if got, text := ask(method, path, body, user, password); got != status || !strings.Contains(text, part) {
			t.Errorf("%s %s as %q: %d %s", method, path, user, got, text)
		}
	}
	secret := url.Values{"value": {"secret"}}.Encode()
	want(http.StatusCreated, `"value":"secret"`, "PUT", "/v2/keys/k", secret, "", "")

	for name, c := range map[string]*http.Client{"a stranger": client(stranger), "nobody": client()} {
		if a, err := c.Get("https://" + h.listen + "/v2/keys/k"); err == nil {
			_ = a.Body.Close() // not read
			t.Errorf("%s has the answer %s", name, a.Status)
		}
	}
	if a, err := http.Get("http://" + h.listen + "/v2/keys/k"); err != nil {
		t.Error(err)
	} else if text, _ := io.ReadAll(a.Body); a.StatusCode != http.StatusBadRequest || strings.Contains(string(text), "secret") {
		t.Errorf("without TLS: %s %s", a.Status, text)
	}

	want(http.StatusCreated, "", "PUT", "/v2/auth/users/root", `{"user":"root","password":"r"}`, "", "")
	want(http.StatusOK, "", "PUT", "/v2/auth/enable", "", "", "")
	want(http.StatusOK, "", "PUT", "/v2/auth/roles/guest", `{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}`, "root", "r")
	want(http.StatusUnauthorized, `"errorCode":110`, "GET", "/v2/keys/k", "", "", "")
	want(http.StatusUnauthorized, `"errorCode":110`, "GET", "/v2/keys/k", "", "root", "wrong")
	want(http.StatusOK, `"value":"secret"`, "GET", "/v2/keys/k", "", "root", "r")
	h.restart()
	want(http.StatusUnauthorized, `"errorCode":110`, "PUT", "/v2/keys/k", secret, "", "")
	want(http.StatusOK, `"value":"secret"`, "PUT", "/v2/keys/k", secret, "root", "r")
}
