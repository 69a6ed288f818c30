package kvhttp

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
)

var errNoRoot = refuse(http.StatusUnauthorized, "Insufficient credentials")

// serveAuth answers a request for users, roles and the switch.
func (h *Handler) serveAuth(w http.ResponseWriter, r *http.Request, rest string) {
	kind, name, named := strings.Cut(rest, "/")
	if kind == "enable" && named || kind != "enable" && kind != "users" && kind != "roles" {
		http.NotFound(w, r)
		return
	}
	name = strings.TrimSuffix(name, "/")
	if strings.Contains(name, "/") {
		h.writeMessage(w, r, refuse(http.StatusBadRequest, "Invalid path"))
		return
	}
	list := kind != "enable" && name == ""
	methods := []string{http.MethodGet, http.MethodPut, http.MethodDelete}
	if list {
		methods = methods[:1]
	}
	if !allow(w, r, methods...) {
		return
	}
	// Whether auth is on is said to everybody.
	if !(kind == "enable" && r.Method == http.MethodGet) && !h.auth.isRoot(r) {
		h.writeMessage(w, r, errNoRoot)
		return
	}
	w.Header()["X-Etcd-Cluster-Id"] = h.clusterID
	h.bodyDeadline(w, r)
	serve := h.serveRole
	switch {
	case kind == "enable":
		serve = h.serveEnable
	case kind == "users" && list:
		serve = h.listUsers
	case kind == "users":
		serve = h.serveUser
	case list:
		serve = h.listRoles
	}
	status, answer, err := serve(r, name)
	if err != nil {
		h.writeMessage(w, r, err)
		return
	}
	if answer == nil {
		w.Header()[contentTypeKey] = jsonType
		w.WriteHeader(status)
		return
	}
	writeBody(w, r, status, jsonType, append(encode(answer), '\n'))
}

func (h *Handler) serveEnable(r *http.Request, _ string) (int, any, error) {
	switch r.Method {
	case http.MethodPut:
		return http.StatusOK, nil, h.auth.enable(r.Context())
	case http.MethodDelete:
		return http.StatusOK, nil, h.auth.disable(r.Context())
	}
	return http.StatusOK, struct {
		Enabled bool `json:"enabled"`
	}{h.auth.enabled()}, nil
}

// userAnswer is a user without the password.
type userAnswer struct {
	User  string   `json:"user"`
	Roles []string `json:"roles"`
}

// userWithRoles is a user with what the roles allow.
type userWithRoles struct {
	User  string `json:"user"`
	Roles []role `json:"roles,omitempty"`
}

func (h *Handler) listUsers(r *http.Request, _ string) (int, any, error) {
	users, err := h.auth.users(r.Context())
	if err != nil {
		return 0, nil, err
	}
	var all []userWithRoles
	for _, u := range users {
		out := userWithRoles{User: u.User}
		for _, name := range u.Roles {
			switch role, err := h.auth.role(r.Context(), name); {
			case isNotFound(err): // one that was deleted
			case err != nil:
				return 0, nil, err
			default:
				out.Roles = append(out.Roles, role)
			}
		}
		all = append(all, out)
	}
	return http.StatusOK, struct {
		Users []userWithRoles `json:"users"`
	}{all}, nil
}

func (h *Handler) listRoles(r *http.Request, _ string) (int, any, error) {
	all, err := h.auth.roles(r.Context())
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, struct {
		Roles []role `json:"roles"`
	}{all}, nil
}

func (h *Handler) serveUser(r *http.Request, name string) (int, any, error) {
	switch r.Method {
	case http.MethodGet:
		u, err := h.auth.user(r.Context(), name)
		if err != nil {
			return 0, nil, err
		}
		out := userWithRoles{User: u.User}
		for _, name := range u.Roles {
			role, err := h.auth.role(r.Context(), name)
			if err != nil {
				return 0, nil, err
			}
			out.Roles = append(out.Roles, role)
		}
		return http.StatusOK, out, nil
	case http.MethodDelete:
		return http.StatusOK, nil, h.auth.deleteUser(r.Context(), name)
	}
	in, err := readUser(r, name, h.o.MaxBody)
	if err != nil {
		return 0, nil, err
	}
	status := http.StatusOK
	var out user
	switch {
	case len(in.Grant) > 0 || len(in.Revoke) > 0:
		out, err = h.auth.updateUser(r.Context(), in)
	case len(in.Roles) > 0:
		out, err = h.auth.createUser(r.Context(), in)
	default:
		_, err = h.auth.user(r.Context(), name)
		switch {
		case isNotFound(err):
			status = http.StatusCreated
			out, err = h.auth.createUser(r.Context(), in)
		case err == nil:
			out, err = h.auth.updateUser(r.Context(), in)
		}
	}
	return status, userAnswer{out.User, out.Roles}, err
}

func (h *Handler) serveRole(r *http.Request, name string) (int, any, error) {
	switch r.Method {
	case http.MethodGet:
		out, err := h.auth.role(r.Context(), name)
		return http.StatusOK, out, err
	case http.MethodDelete:
		return http.StatusOK, nil, h.auth.deleteRole(r.Context(), name)
	}
	in, err := readRole(r, name, h.o.MaxBody)
	if err != nil {
		return 0, nil, err
	}
	if in.Grant.isEmpty() && in.Revoke.isEmpty() {
		out, err := h.auth.createRole(r.Context(), role{in.Role, in.Permissions})
		return http.StatusCreated, out, err
	}
	out, err := h.auth.updateRole(r.Context(), in)
	return http.StatusOK, out, err
}

// userRequest is the body of a request to create or change a user.
type userRequest struct {
	User     string   `json:"user"`
	Password string   `json:"password"`
	Roles    []string `json:"roles"`
	Grant    []string `json:"grant"`
	Revoke   []string `json:"revoke"`
}

func readUser(r *http.Request, name string, maxBody int64) (userRequest, error) {
	body, err := readJSONBody(r, maxBody)
	if err != nil {
		return userRequest{}, err
	}
	return parseUser(body, name)
}

func parseUser(body []byte, name string) (in userRequest, err error) {
	if err := decodeFirst(body, &in); err != nil {
		return in, err
	}
	switch {
	case in.User != name:
		return in, refuse(http.StatusBadRequest, "User JSON name does not match the name in the URL")
	case len(in.Roles) > 0 && (len(in.Grant) > 0 || len(in.Revoke) > 0):
		return in, refuse(http.StatusBadRequest, "User JSON contains both roles and grant/revoke")
	}
	return in, nil
}

// roleRequest is the body of a request to create or change a role.
type roleRequest struct {
	Role        string       `json:"role"`
	Permissions permissions  `json:"permissions"`
	Grant       *permissions `json:"grant"`
	Revoke      *permissions `json:"revoke"`
}

func readRole(r *http.Request, name string, maxBody int64) (roleRequest, error) {
	body, err := readJSONBody(r, maxBody)
	if err != nil {
		return roleRequest{}, err
	}
	return parseRole(body, name)
}

func parseRole(body []byte, name string) (in roleRequest, err error) {
	if err := decodeFirst(body, &in); err != nil {
		return in, err
	}
	switch {
	case in.Role != name:
		return in, refuse(http.StatusBadRequest, "Role JSON name does not match the name in the URL")
	case !in.Permissions.isEmpty() && (!in.Grant.isEmpty() || !in.Revoke.isEmpty()):
		return in, refuse(http.StatusBadRequest, "Role JSON contains both permissions and grant/revoke")
	}
	return in, nil
}

// decodeFirst reads the first JSON value of a body. What follows it is not looked at, as clients are used to.
func decodeFirst(body []byte, v any) error {
	if err := json.NewDecoder(strings.NewReader(string(body))).Decode(v); err != nil {
		return refuse(http.StatusBadRequest, "Invalid JSON in request body.")
	}
	return nil
}

func isNotFound(err error) bool {
	var e *statusError
	return errors.As(err, &e) && e.status == http.StatusNotFound
}
