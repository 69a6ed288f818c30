package kvhttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Member is one member of the cluster that keeps the key tree.
type Member struct {
	ID         uint64
	Name       string
	PeerURLs   []string
	ClientURLs []string
}

// MarshalJSON writes the member with its number in hexadecimal.
func (m Member) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ID         string   `json:"id"`
		Name       string   `json:"name"`
		PeerURLs   []string `json:"peerURLs"`
		ClientURLs []string `json:"clientURLs"`
	}{strconv.FormatUint(m.ID, 16), m.Name, list(m.PeerURLs), list(m.ClientURLs)})
}

// list is never null in JSON.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

// Cluster is who keeps the key tree.
type Cluster interface {
	// ID names the cluster for as long as it exists.
	ID() uint64
	// Self is this host.
	Self() Member
	// Members has all members in the order of their numbers.
	Members() []Member
	// Leader is the member that leads, if one does.
	Leader() (Member, bool)
	// Add makes a member of a host that is reached at urls.
	Add(ctx context.Context, urls []string) (Member, error)
	// Update changes where a member is reached.
	Update(ctx context.Context, id uint64, urls []string) error
	// Remove takes a member out for good.
	Remove(ctx context.Context, id uint64) error
}

// Errors of a Cluster that have an answer of their own.
var (
	ErrNoSuchMember  = fmt.Errorf("no such member: %w", errdefs.ErrNotFound)
	ErrMemberRemoved = fmt.Errorf("member permanently removed: %w", errdefs.ErrNotFound)
	ErrMemberExists  = fmt.Errorf("a member with this URL exists: %w", errdefs.ErrAlreadyExists)
	// ErrAlone is returned by a host that is in no cluster.
	ErrAlone = fmt.Errorf("this host is in no cluster, so its key tree has no members to change: %w", errdefs.ErrNotImplemented)
)

// Alone is a host that is in no cluster: it leads itself.
type Alone struct {
	Cluster uint64
	Member  Member
}

var _ Cluster = Alone{}

// ID returns the cluster's number.
func (a Alone) ID() uint64 { return a.Cluster }

// Self returns the only member.
func (a Alone) Self() Member { return a.Member }

// Members returns the only member.
func (a Alone) Members() []Member { return []Member{a.Member} }

// Leader returns the only member.
func (a Alone) Leader() (Member, bool) { return a.Member, true }

// Add returns ErrAlone.
func (a Alone) Add(context.Context, []string) (Member, error) { return Member{}, ErrAlone }

// Update returns ErrAlone, or ErrNoSuchMember.
func (a Alone) Update(_ context.Context, id uint64, _ []string) error { return a.refuse(id) }

// Remove returns ErrAlone, or ErrNoSuchMember.
func (a Alone) Remove(_ context.Context, id uint64) error { return a.refuse(id) }

func (a Alone) refuse(id uint64) error {
	if id != a.Member.ID {
		return ErrNoSuchMember
	}
	return ErrAlone
}

func (h *Handler) serveMembers(w http.ResponseWriter, r *http.Request, rest string) {
	if !allow(w, r, http.MethodGet, http.MethodPost, http.MethodDelete, http.MethodPut) {
		return
	}
	if r.Method != http.MethodGet && !h.auth.isRoot(r) {
		h.writeMessage(w, r, errNoRoot)
		return
	}
	w.Header()["X-Etcd-Cluster-Id"] = h.clusterID
	if r.Method == http.MethodGet {
		h.listMembers(w, r, rest)
		return
	}
	if r.Method != http.MethodPost && (rest == "" || rest == "/") {
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	h.bodyDeadline(w, r)
	ctx, cancel := context.WithTimeout(r.Context(), h.o.RequestTimeout)
	defer cancel()
	added, err := h.changeMember(ctx, r, strings.TrimPrefix(rest, "/"))
	switch {
	case err != nil:
		h.writeMessage(w, r, err)
	case r.Method == http.MethodPost:
		writeBody(w, r, http.StatusCreated, jsonType, append(encode(added), '\n'))
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

func (h *Handler) listMembers(w http.ResponseWriter, r *http.Request, rest string) {
	switch rest {
	case "", "/":
		all := slices.Clone(h.cluster.Members())
		slices.SortFunc(all, func(a, b Member) int {
			return strings.Compare(strconv.FormatUint(a.ID, 16), strconv.FormatUint(b.ID, 16))
		})
		body := encode(struct {
			Members []Member `json:"members"`
		}{all})
		writeBody(w, r, http.StatusOK, jsonType, append(body, '\n'))
	case "/leader":
		leader, ok := h.cluster.Leader()
		if !ok {
			h.writeMessage(w, r, refuse(http.StatusServiceUnavailable, "During election"))
			return
		}
		writeBody(w, r, http.StatusOK, jsonType, append(encode(leader), '\n'))
	default:
		h.writeMessage(w, r, refuse(http.StatusNotFound, "Not found"))
	}
}

// changeMember carries out a request to add, update or remove a member; name is what the path has for its number.
func (h *Handler) changeMember(ctx context.Context, r *http.Request, name string) (Member, error) {
	var urls []string
	if r.Method != http.MethodDelete {
		var err error
		if urls, err = readPeerURLs(r, h.o.MaxBody); err != nil {
			return Member{}, err
		}
	}
	if r.Method == http.MethodPost {
		m, err := h.cluster.Add(ctx, urls)
		return m, memberAnswer(err, "")
	}
	id, err := strconv.ParseUint(name, 16, 64)
	if err != nil {
		return Member{}, memberAnswer(ErrNoSuchMember, name)
	}
	if r.Method == http.MethodPut {
		return Member{}, memberAnswer(h.cluster.Update(ctx, id, urls), name)
	}
	return Member{}, memberAnswer(h.cluster.Remove(ctx, id), name)
}

// memberAnswer is what a client is told of a Cluster's error.
func memberAnswer(err error, name string) error {
	switch {
	case errors.Is(err, ErrNoSuchMember):
		return refuse(http.StatusNotFound, "No such member: %s", name)
	case errors.Is(err, ErrMemberRemoved):
		return refuse(http.StatusGone, "Member permanently removed: %s", name)
	case errors.Is(err, ErrMemberExists):
		return refuse(http.StatusConflict, "membership: peerURL exists")
	case errors.Is(err, ErrAlone):
		return refuse(http.StatusNotImplemented, "%v", err)
	}
	return err
}

// readPeerURLs reads the body of a request that says where a member is reached.
func readPeerURLs(r *http.Request, maxBody int64) ([]string, error) {
	given := r.Header.Get("Content-Type")
	if kind, _, err := mime.ParseMediaType(given); err != nil || kind != "application/json" {
		return nil, refuse(http.StatusUnsupportedMediaType, "Bad Content-Type %s, accept application/json", given)
	}
	body, err := readJSONBody(r, maxBody)
	if err != nil {
		return nil, err
	}
	return parsePeerURLs(body)
}

func readJSONBody(r *http.Request, maxBody int64) ([]byte, error) {
	if r.ContentLength > maxBody {
		return nil, refuse(http.StatusBadRequest, "%v", tooLarge(maxBody))
	}
	body, err := readAll(r.Body, r.ContentLength, maxBody)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	return []byte(body), nil
}

// parsePeerURLs reads {"peerURLs": [...]}. Each URL has a scheme, a host and a port and nothing else; they come back sorted.
func parsePeerURLs(body []byte) ([]string, error) {
	var in struct {
		PeerURLs []string `json:"peerURLs"`
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, refuse(http.StatusBadRequest, "%v", err)
	}
	if len(in.PeerURLs) == 0 {
		return nil, refuse(http.StatusBadRequest, "no valid URLs given")
	}
	var urls []string
	for _, s := range in.PeerURLs {
		s = strings.TrimSpace(s)
		u, err := url.Parse(s)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "%v", err)
		}
		if !slices.Contains([]string{"http", "https", "unix", "unixs"}, u.Scheme) {
			return nil, refuse(http.StatusBadRequest, "URL scheme must be http, https, unix, or unixs: %s", s)
		}
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return nil, refuse(http.StatusBadRequest, "URL address does not have the form \"host:port\": %s", s)
		}
		if u.Path != "" {
			return nil, refuse(http.StatusBadRequest, "URL must not contain a path: %s", s)
		}
		urls = append(urls, u.String())
	}
	slices.Sort(urls)
	return urls, nil
}

func (h *Handler) serveMachines(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	var urls []string
	for _, m := range h.cluster.Members() {
		urls = append(urls, m.ClientURLs...)
	}
	slices.Sort(urls)
	writeBody(w, r, http.StatusOK, textType, []byte(strings.Join(urls, ", ")))
}

// encode returns v as JSON. What is encoded here has no values that JSON cannot hold.
func encode(v any) []byte {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
