package kvstore

import (
	"net/http"
	"strconv"
)

// The codes of the etcd v2 API that the store, its replica and the HTTP service in front of it answer with.
const (
	CodeKeyNotFound      = 100
	CodeCompareFailed    = 101
	CodeNotFile          = 102
	CodeNotDir           = 104
	CodeKeyExists        = 105
	CodeRootReadOnly     = 107
	CodeDirNotEmpty      = 108
	CodeUnauthorized     = 110
	CodePrevValueMissing = 201
	CodeTTLNaN           = 202
	CodeIndexNaN         = 203
	CodeInvalidField     = 209
	CodeInvalidForm      = 210
	CodeRefreshValue     = 211
	CodeRefreshTTL       = 212
	CodeRaftInternal     = 300
	CodeLeaderElection   = 301
	CodeWatcherCleared   = 400
	CodeHistoryCleared   = 401
)

// Error is an error of the API. Its JSON form is the body of an HTTP answer.
type Error struct {
	Code    int
	Message string
	Cause   string
	Index   uint64 // the store's index when the error arose; 0 when a request was refused before it reached the store
}

// NewError makes an error with the message that belongs to the code.
func NewError(code int, cause string, index uint64) *Error {
	return &Error{Code: code, Message: message(code), Cause: cause, Index: index}
}

// Error returns "message (cause)".
func (e *Error) Error() string { return e.Message + " (" + e.Cause + ")" }

// StatusCode returns the HTTP status that goes with the code.
func (e *Error) StatusCode() int {
	switch e.Code {
	case 100:
		return http.StatusNotFound
	case 101, 105:
		return http.StatusPreconditionFailed
	case 102, 108:
		return http.StatusForbidden
	case 110:
		return http.StatusUnauthorized
	case 300, 301:
		return http.StatusInternalServerError
	}
	return http.StatusBadRequest
}

// MarshalJSON writes errorCode, message, cause unless empty, and index.
func (e *Error) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 128), `{"errorCode":`...)
	b = strconv.AppendInt(b, int64(e.Code), 10)
	b = append(b, `,"message":`...)
	b = appendJSONString(b, e.Message)
	if e.Cause != "" {
		b = append(b, `,"cause":`...)
		b = appendJSONString(b, e.Cause)
	}
	b = append(b, `,"index":`...)
	b = strconv.AppendUint(b, e.Index, 10)
	return append(b, '}'), nil
}

func message(code int) string {
	switch code {
	case 100:
		return "Key not found"
	case 101:
		return "Compare failed"
	case 102:
		return "Not a file"
	case 103:
		return "Reached the max number of peers in the cluster"
	case 104:
		return "Not a directory"
	case 105:
		return "Key already exists"
	case 106:
		return "The prefix of given key is a keyword in etcd"
	case 107:
		return "Root is read only"
	case 108:
		return "Directory not empty"
	case 109:
		return "Peer address has existed"
	case 110:
		return "The request requires user authentication"
	case 200:
		return "Value is Required in POST form"
	case 201:
		return "PrevValue is Required in POST form"
	case 202:
		return "The given TTL in POST form is not a number"
	case 203:
		return "The given index in POST form is not a number"
	case 204:
		return "Value or TTL is required in POST form"
	case 205:
		return "The given timeout in POST form is not a number"
	case 206:
		return "Name is required in POST form"
	case 207:
		return "Index or value is required"
	case 208:
		return "Index and value cannot both be specified"
	case 209:
		return "Invalid field"
	case 210:
		return "Invalid POST form"
	case 211:
		return "Value provided on refresh"
	case 212:
		return "A TTL must be provided on refresh"
	case 300:
		return "Raft Internal Error"
	case 301:
		return "During Leader Election"
	case 400:
		return "watcher is cleared due to etcd recovery"
	case 401:
		return "The event in requested index is outdated and cleared"
	case 402:
		return "Standby Internal Error"
	case 403:
		return "Invalid active size"
	case 404:
		return "Standby remove delay"
	case 500:
		return "Client Internal Error"
	}
	return ""
}
