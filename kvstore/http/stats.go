package kvhttp

import (
	"net/http"
	"strconv"
	"time"
)

func (h *Handler) serveStats(w http.ResponseWriter, r *http.Request, name string) {
	var body func() (int, []byte)
	switch name {
	case "self":
		body = h.selfStats
	case "store":
		body = func() (int, []byte) { return http.StatusOK, encode(h.tree.Store().Stats()) }
	case "leader":
		body = h.leaderStats
	default:
		http.NotFound(w, r)
		return
	}
	if allow(w, r, http.MethodGet) {
		status, b := body()
		writeBody(w, r, status, jsonType, b)
	}
}

// selfStats has the fields that clients read. Messages between members are not counted here.
func (h *Handler) selfStats() (int, []byte) {
	type leaderInfo struct {
		Leader    string    `json:"leader"`
		Uptime    string    `json:"uptime"`
		StartTime time.Time `json:"startTime"`
	}
	self, state, info := h.cluster.Self(), "StateFollower", leaderInfo{Uptime: time.Since(h.started).String(), StartTime: h.started.UTC()}
	if leader, ok := h.cluster.Leader(); ok {
		info.Leader = strconv.FormatUint(leader.ID, 16)
		if leader.ID == self.ID {
			state = "StateLeader"
		}
	}
	return http.StatusOK, encode(struct {
		Name         string     `json:"name"`
		ID           string     `json:"id"`
		State        string     `json:"state"`
		StartTime    time.Time  `json:"startTime"`
		Leader       leaderInfo `json:"leaderInfo"`
		RecvRequests uint64     `json:"recvAppendRequestCnt"`
		SendRequests uint64     `json:"sendAppendRequestCnt"`
	}{self.Name, strconv.FormatUint(self.ID, 16), state, h.started.UTC(), info, 0, 0})
}

// leaderStats is answered by the leader alone. It has no figures of its followers.
func (h *Handler) leaderStats() (int, []byte) {
	self := h.cluster.Self()
	if leader, ok := h.cluster.Leader(); !ok || leader.ID != self.ID {
		return http.StatusForbidden, []byte(`{"message":"not current leader"}`)
	}
	return http.StatusOK, encode(struct {
		Leader    string   `json:"leader"`
		Followers struct{} `json:"followers"`
	}{Leader: strconv.FormatUint(self.ID, 16)})
}

func (h *Handler) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	if _, ok := h.cluster.Leader(); !ok {
		writeBody(w, r, http.StatusServiceUnavailable, textType, []byte(`{"health":"false"}`))
		return
	}
	writeBody(w, r, http.StatusOK, textType, []byte(`{"health":"true"}`))
}
