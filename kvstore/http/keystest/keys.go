package keystest

import (
	"fmt"
	"net/url"
	"strings"
)

// invalid is the answer to a parameter that cannot be read.
func invalid(code int, message, cause string) string {
	return fmt.Sprintf(`{"errorCode":%d,"message":"%s","cause":"%s","index":0}`, code, message, strings.ReplaceAll(cause, `"`, `\"`))
}

func field(cause string) string { return invalid(209, "Invalid field", cause) }

func number(name string) string {
	return invalid(203, "The given index in POST form is not a number", `invalid value for "`+name+`"`)
}

const (
	notTTL      = `{"errorCode":202,"message":"The given TTL in POST form is not a number","cause":"invalid value for \"ttl\"","index":0}`
	emptyPrev   = `{"errorCode":201,"message":"PrevValue is Required in POST form","cause":"\"prevValue\" cannot be empty","index":0}`
	onlyGet     = `{"errorCode":209,"message":"Invalid field","cause":"\"wait\" can only be used with GET requests","index":0}`
	refreshing  = `{"errorCode":211,"message":"Value provided on refresh","cause":"A value was provided on a refresh","index":0}`
	refreshless = `{"errorCode":212,"message":"A TTL must be provided on refresh","cause":"No TTL value set","index":0}`
	methods     = "HEAD,GET,PUT,POST,DELETE"
	rootIsFixed = `{"errorCode":107,"message":"Root is read only","cause":"/","index":{+0}}`
)

func keyScenarios() []scenario {
	return []scenario{
		{"an empty tree", []row{
			{send: "GET /v2/keys", status: 200, body: `{"action":"get","node":{"dir":true}}`},
			{send: "GET /v2/keys/", status: 200, body: `{"action":"get","node":{"dir":true}}`},
			{send: "GET /v2/keys?recursive=true&sorted=true", status: 200, body: `{"action":"get","node":{"dir":true}}`},
			{send: "GET /v2/keys?quorum=true", status: 200, body: `{"action":"get","node":{"dir":true}}`},
			{send: "HEAD /v2/keys", status: 200},
		}},
		{"get", []row{
			{send: "GET @/none", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/none/x", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/none","index":{+1}}`},
			{send: "GET @/f/x/y", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+1}}`},
			{send: "GET @/f", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f?quorum=true", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/none?quorum=true", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/none","index":{+1}}`},
			{send: "GET @/f?recursive=true&sorted=true", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f?noValueOnSuccess=true", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f?stream=true", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f?dir=true&prevExist=true&prevIndex=9&prevValue=x&ttl=5&value=x", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f/", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "HEAD @/f", status: 200},
			{send: "HEAD @/none", status: 404},
			{send: "HEAD @/f?quorum=true", status: 200},
			// The body of a request that has none by its method is not read.
			{send: "GET @/f", form: "recursive=maybe", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
		}},
		{"lists", []row{
			{send: "PUT @/b", form: "value=1", status: 201, body: `~.*`},
			{send: "PUT @/a/x/deep", form: "value=2", status: 201, body: `{"action":"set","node":{"key":"@/a/x/deep","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/_hidden", form: "value=3", status: 201, body: `~.*`},
			{send: "PUT @/_dir/x", form: "value=4", status: 201, body: `~.*`},
			{send: "PUT @/a/_h", form: "value=5", status: 201, body: `~.*`},
			{send: "PUT @/empty", form: "dir=true", status: 201, body: `{"action":"set","node":{"key":"@/empty","dir":true,"modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "GET @?sorted=true", status: 200, body: `{"action":"get","node":{"key":"@","dir":true,"nodes":[{"key":"@/a","dir":true,"modifiedIndex":{+2},"createdIndex":{+2}},{"key":"@/b","value":"1","modifiedIndex":{+1},"createdIndex":{+1}},{"key":"@/empty","dir":true,"modifiedIndex":{+6},"createdIndex":{+6}}],"modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @?sorted=true&recursive=true", status: 200, body: `{"action":"get","node":{"key":"@","dir":true,"nodes":[{"key":"@/a","dir":true,"nodes":[{"key":"@/a/x","dir":true,"nodes":[{"key":"@/a/x/deep","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}],"modifiedIndex":{+2},"createdIndex":{+2}}],"modifiedIndex":{+2},"createdIndex":{+2}},{"key":"@/b","value":"1","modifiedIndex":{+1},"createdIndex":{+1}},{"key":"@/empty","dir":true,"modifiedIndex":{+6},"createdIndex":{+6}}],"modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/empty", status: 200, body: `{"action":"get","node":{"key":"@/empty","dir":true,"modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "GET @/_hidden", status: 200, body: `{"action":"get","node":{"key":"@/_hidden","value":"3","modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "GET @/_dir", status: 200, body: `{"action":"get","node":{"key":"@/_dir","dir":true,"nodes":[{"key":"@/_dir/x","value":"4","modifiedIndex":{+4},"createdIndex":{+4}}],"modifiedIndex":{+4},"createdIndex":{+4}}}`},
		}},
		{"set", []row{
			{send: "PUT @/f", form: "value=bar", status: 201, body: `{"action":"set","node":{"key":"@/f","value":"bar","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f", form: "value=baz&ttl=100", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"baz","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+2},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"bar","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "GET @/f", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"baz","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/f", form: "value=x&ttl=", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"x","modifiedIndex":{+3},"createdIndex":{+3}},"prevNode":{"key":"@/f","value":"baz","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/f", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"","modifiedIndex":{+4},"createdIndex":{+4}},"prevNode":{"key":"@/f","value":"x","modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "PUT @/f?noValueOnSuccess=true", form: "value=3", status: 200, body: `{"action":"set"}`},
			{send: "PUT @/new?noValueOnSuccess=true", form: "value=3", status: 201, body: `{"action":"set"}`},
			{send: "PUT @/f/x", form: "value=3", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+6}}`},
			{send: "PUT @/f/x/y", form: "value=3", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+6}}`},
			{send: "PUT @/d", form: "dir=true", status: 201, body: `{"action":"set","node":{"key":"@/d","dir":true,"modifiedIndex":{+7},"createdIndex":{+7}}}`},
			{send: "PUT @/d", form: "dir=true", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+7}}`},
			{send: "PUT @/d", form: "value=x", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+7}}`},
			{send: "PUT @/d2", form: "dir=true&value=x", status: 201, body: `{"action":"set","node":{"key":"@/d2","dir":true,"modifiedIndex":{+8},"createdIndex":{+8}}}`},
			{send: "PUT @/f", form: "dir=true", status: 200, body: `{"action":"set","node":{"key":"@/f","dir":true,"modifiedIndex":{+9},"createdIndex":{+9}},"prevNode":{"key":"@/f","value":"3","modifiedIndex":{+5},"createdIndex":{+5}}}`},
			{send: "PUT @/dt", form: "dir=true&ttl=200", status: 201, body: `{"action":"set","node":{"key":"@/dt","dir":true,"expiration":"{time}","ttl":{ttl200},"modifiedIndex":{+10},"createdIndex":{+10}}}`},
			{send: "PUT @/f2?prevIndex=0", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/f2","value":"1","modifiedIndex":{+11},"createdIndex":{+11}}}`},
		}},
		{"ttl", []row{
			// Until the next expiry pass a lifetime of nothing reads like any other.
			{send: "PUT @/zero", form: "value=1&ttl=0", status: 201, body: `{"action":"set","node":{"key":"@/zero","value":"1","expiration":"{time}","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/zero", form: "value=1", status: 200, body: `~\{"action":"set".*`, why: "the expiry pass may come first", etcdStatus: 200, etcdBody: `~\{"action":"set".*`},
			{send: "PUT @/long?ttl=10000000000", form: "value=1", status: 400, body: notTTL, why: "the time that etcd stores has overflowed: the key is permanent, or gone at once", etcdStatus: 201, etcdBody: `~\{"action":"set","node":\{"key":"[^"]*","value":"1","modifiedIndex":.*`},
			{send: "PUT @/long2?ttl=18446744073709551615", form: "value=1", status: 400, body: notTTL, why: "as above", etcdStatus: 201, etcdBody: `~.*"ttl":-\d+.*`},
			// Nothing of this is to expire while another scenario counts.
			{send: "DELETE @?recursive=true", status: 200, body: `~.*`},
		}},
		{"the root", []row{
			{send: "PUT /v2/keys", form: "value=1", status: 400, body: rootIsFixed},
			{send: "PUT /v2/keys/", form: "dir=true", status: 400, body: rootIsFixed},
			{send: "PUT /v2/keys?prevExist=true", form: "dir=true", status: 400, body: rootIsFixed},
			{send: "PUT /v2/keys?prevExist=false", form: "dir=true", status: 400, body: rootIsFixed},
			{send: "PUT /v2/keys?prevValue=1", form: "value=1", status: 400, body: rootIsFixed},
			{send: "DELETE /v2/keys", status: 400, body: rootIsFixed},
			{send: "DELETE /v2/keys?recursive=true", status: 400, body: rootIsFixed},
			{send: "DELETE /v2/keys?dir=true", status: 400, body: rootIsFixed},
			{send: "DELETE /v2/keys?prevValue=1", status: 403, body: `{"errorCode":102,"message":"Not a file","index":{+0}}`},
			{send: "POST /v2/keys", form: "value=1", status: 201, body: `{"action":"create","node":{"key":"/{20+1}","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
		}},
		{"create in order", []row{
			{send: "POST @/q", form: "value=j1", status: 201, body: `{"action":"create","node":{"key":"@/q/{20+1}","value":"j1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "POST @/q", form: "value=j2&ttl=90", status: 201, body: `{"action":"create","node":{"key":"@/q/{20+2}","value":"j2","expiration":"{time}","ttl":{ttl90},"modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "POST @/q", form: "dir=true", status: 201, body: `{"action":"create","node":{"key":"@/q/{20+3}","dir":true,"modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "POST @/q?prevExist=true&prevValue=x&prevIndex=1", form: "value=j3", status: 201, body: `{"action":"create","node":{"key":"@/q/{20+4}","value":"j3","modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "POST @/q?noValueOnSuccess=true", form: "value=j4", status: 201, body: `{"action":"create"}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "POST @/f", form: "value=1", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+6}}`},
		}},
		{"create", []row{
			{send: "PUT @/f?prevExist=false", form: "value=1", status: 201, body: `{"action":"create","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f?prevExist=false", form: "value=1", status: 412, body: `{"errorCode":105,"message":"Key already exists","cause":"@/f","index":{+1}}`},
			{send: "PUT @/g?prevExist=false&prevValue=zz&prevIndex=77", form: "value=1", status: 201, body: `{"action":"create","node":{"key":"@/g","value":"1","modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/d/e/f?prevExist=false", form: "dir=true&ttl=100", status: 201, body: `{"action":"create","node":{"key":"@/d/e/f","dir":true,"expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "GET @/d", status: 200, body: `{"action":"get","node":{"key":"@/d","dir":true,"nodes":[{"key":"@/d/e","dir":true,"modifiedIndex":{+3},"createdIndex":{+3}}],"modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "PUT @/d?prevExist=false", form: "value=1", status: 412, body: `{"errorCode":105,"message":"Key already exists","cause":"@/d","index":{+3}}`},
			{send: "PUT @/f/x?prevExist=false", form: "value=1", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+3}}`},
		}},
		{"update", []row{
			{send: "PUT @/f?prevExist=true", form: "value=1", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/f", form: "value=1&ttl=100", status: 201, body: `~.*`},
			{send: "PUT @/f?prevExist=true", form: "value=2", status: 200, body: `{"action":"update","node":{"key":"@/f","value":"2","modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f?prevExist=true", form: "value=3&ttl=50", status: 200, body: `{"action":"update","node":{"key":"@/f","value":"3","expiration":"{time}","ttl":{ttl50},"modifiedIndex":{+3},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"2","modifiedIndex":{+2},"createdIndex":{+1}}}`},
			{send: "PUT @/d", form: "dir=true", status: 201, body: `~.*`},
			{send: "PUT @/d?prevExist=true", form: "dir=true&ttl=50", status: 200, body: `{"action":"update","node":{"key":"@/d","dir":true,"expiration":"{time}","ttl":{ttl50},"modifiedIndex":{+5},"createdIndex":{+4}},"prevNode":{"key":"@/d","dir":true,"modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "GET @/d", status: 200, body: `{"action":"get","node":{"key":"@/d","dir":true,"expiration":"{time}","ttl":{ttl50},"modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "PUT @/d?prevExist=true", form: "dir=true", status: 200, body: `{"action":"update","node":{"key":"@/d","dir":true,"modifiedIndex":{+6},"createdIndex":{+4}},"prevNode":{"key":"@/d","dir":true,"expiration":"{time}","ttl":{ttl50},"modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "PUT @/d?prevExist=true", form: "value=x", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+6}}`},
			{send: "PUT @/d?prevExist=true", form: "dir=true&value=x", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+6}}`},
			{send: "PUT @/f/x?prevExist=true", form: "value=x", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+6}}`},
			{send: "PUT @/f?prevExist=true&noValueOnSuccess=true", form: "value=x", status: 200, body: `{"action":"update"}`},
			{send: "PUT @/f?prevExist=true&prevIndex=0", form: "value=4", status: 200, body: `~\{"action":"update".*`},
		}},
		{"compare and swap", []row{
			{send: "PUT @/none?prevValue=1", form: "value=2", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/f", form: "value=1&ttl=100", status: 201, body: `~.*`},
			{send: "PUT @/f?prevValue=zz", form: "value=2", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[zz != 1]","index":{+1}}`},
			{send: "PUT @/f?prevIndex=1", form: "value=2", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[1 != {+1}]","index":{+1}}`},
			{send: "PUT @/f?prevIndex=1&prevValue=zz", form: "value=2", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[zz != 1] [1 != {+1}]","index":{+1}}`},
			{send: "PUT @/f?prevIndex=1&prevValue=1", form: "value=2", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[1 != {+1}]","index":{+1}}`},
			{send: "PUT @/f?prevValue=1", form: "value=2", status: 200, body: `{"action":"compareAndSwap","node":{"key":"@/f","value":"2","modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f", form: "prevValue=2&value=3&prevExist=true&ttl=100", status: 200, body: `{"action":"compareAndSwap","node":{"key":"@/f","value":"3","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+3},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"2","modifiedIndex":{+2},"createdIndex":{+1}}}`},
			{send: "PUT @/f?prevValue=3&noValueOnSuccess=true", form: "value=4", status: 200, body: `{"action":"compareAndSwap"}`},
			{send: "PUT @/d", form: "dir=true", status: 201, body: `~.*`},
			{send: "PUT @/d?prevValue=x", form: "value=2", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+5}}`},
			{send: "PUT @/f/x?prevValue=x", form: "value=2", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/f","index":{+5}}`},
		}},
		{"delete", []row{
			{send: "DELETE @/none", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/d/f", form: "value=1", status: 201, body: `~.*`},
			{send: "DELETE @/d", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+1}}`},
			{send: "DELETE @/d?dir=true", status: 403, body: `{"errorCode":108,"message":"Directory not empty","cause":"@/d","index":{+1}}`},
			{send: "DELETE @/d", form: "recursive=true", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+1}}`},
			{send: "DELETE @/d/f/x", status: 400, body: `{"errorCode":104,"message":"Not a directory","cause":"@/d/f","index":{+1}}`},
			{send: "DELETE @/d/f", status: 200, body: `{"action":"delete","node":{"key":"@/d/f","modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/d/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "DELETE @/d?dir=true", status: 200, body: `{"action":"delete","node":{"key":"@/d","dir":true,"modifiedIndex":{+3},"createdIndex":{+1}},"prevNode":{"key":"@/d","dir":true,"modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/e/f/g", form: "value=1", status: 201, body: `~.*`},
			{send: "DELETE @/e?recursive=true", status: 200, body: `{"action":"delete","node":{"key":"@/e","dir":true,"modifiedIndex":{+5},"createdIndex":{+4}},"prevNode":{"key":"@/e","dir":true,"modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "DELETE @/f?recursive=true&dir=true", status: 200, body: `{"action":"delete","node":{"key":"@/f","modifiedIndex":{+7},"createdIndex":{+6}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			// It says what is asked of a write with a value, but a removal keeps its node.
			{send: "DELETE @/f?noValueOnSuccess=true", status: 200, body: `{"action":"delete","node":{"key":"@/f","modifiedIndex":{+9},"createdIndex":{+8}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+8},"createdIndex":{+8}}}`},
			{send: "DELETE @?recursive=true", status: 200, body: `~.*`},
		}},
		{"compare and delete", []row{
			{send: "DELETE @/none?prevValue=1", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "DELETE @/f?prevValue=zz", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[zz != 1]","index":{+1}}`},
			{send: "DELETE @/f?prevIndex=1", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[1 != {+1}]","index":{+1}}`},
			{send: "DELETE @/f?prevIndex=1&prevValue=zz", status: 412, body: `{"errorCode":101,"message":"Compare failed","cause":"[zz != 1] [1 != {+1}]","index":{+1}}`},
			{send: "DELETE @/f?prevValue=1", status: 200, body: `{"action":"compareAndDelete","node":{"key":"@/f","modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/d", form: "dir=true", status: 201, body: `~.*`},
			{send: "DELETE @/d?prevIndex=9&recursive=true", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+3}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "DELETE @/f?prevValue=1&prevIndex=0&noValueOnSuccess=true", status: 200, body: `{"action":"compareAndDelete","node":{"key":"@/f","modifiedIndex":{+5},"createdIndex":{+4}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+4},"createdIndex":{+4}}}`},
		}},
		{"refresh", []row{
			{send: "PUT @/f?refresh=true", form: "ttl=100", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`},
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "PUT @/none?refresh=true", form: "ttl=100", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/none","index":{+1}}`},
			{send: "PUT @/none?refresh=true&prevExist=true", form: "ttl=100", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/none","index":{+1}}`},
			{send: "PUT @/f?refresh=true", form: "ttl=100", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+2},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f?refresh=true&prevExist=true", form: "ttl=90", status: 200, body: `{"action":"update","node":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl90},"modifiedIndex":{+3},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/f?refresh=true&prevValue=1", form: "ttl=80", status: 200, body: `{"action":"compareAndSwap","node":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl80},"modifiedIndex":{+4},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl90},"modifiedIndex":{+3},"createdIndex":{+2}}}`},
			{send: "PUT @/f?refresh=true&noValueOnSuccess=true", form: "ttl=80", status: 200, body: `{"action":"set"}`},
			{send: "GET @/f", status: 200, body: `{"action":"get","node":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl80},"modifiedIndex":{+5},"createdIndex":{+5}}}`},
			{send: "PUT @/d", form: "dir=true", status: 201, body: `~.*`},
			{send: "PUT @/d?refresh=true&prevExist=true", form: "dir=true&ttl=70", status: 200, body: `{"action":"update","node":{"key":"@/d","dir":true,"expiration":"{time}","ttl":{ttl70},"modifiedIndex":{+7},"createdIndex":{+6}},"prevNode":{"key":"@/d","dir":true,"modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "PUT @/d?refresh=true", form: "dir=true&ttl=70", status: 403, body: `{"errorCode":102,"message":"Not a file","cause":"@/d","index":{+7}}`},
		}},
		{"parameters", parameters()},
		{"forms", []row{
			{send: "PUT @/f?value=query", form: "value=body&value=second", status: 201, body: `{"action":"set","node":{"key":"@/f","value":"body","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f?value=query&value=second", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"query","modifiedIndex":{+2},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"body","modifiedIndex":{+1},"createdIndex":{+1}}}`},
			{send: "PUT @/f?ttl=1&value=a", form: "ttl=&value", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"","modifiedIndex":{+3},"createdIndex":{+3}},"prevNode":{"key":"@/f","value":"query","modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "PUT @/f", form: "value=a+b%20c%2B&&", status: 200, body: `{"action":"set","node":{"key":"@/f","value":"a b c+","modifiedIndex":{+4},"createdIndex":{+4}},"prevNode":{"key":"@/f","value":"","modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "PUT @/f", form: "val%75e=%3D=", status: 200, body: `~\{"action":"set","node":\{"key":"[^"]*","value":"==",.*`},
			{send: "PUT @/f", form: "value=%zz", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%zz"`)},
			{send: "PUT @/f", form: "value=%z", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%z"`)},
			{send: "PUT @/f", form: "%=1", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%"`)},
			{send: "PUT @/f?value=%zz", form: "value=1", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%zz"`)},
			{send: "PUT @/f?value=a;x=1", form: "value=1", status: 400, body: invalid(210, "Invalid POST form", `invalid semicolon separator in query`)},
			{send: "PUT @/f", form: "value=a;x=1", status: 400, body: invalid(210, "Invalid POST form", `invalid semicolon separator in query`)},
			{send: "PUT @/f?a=%xx", form: "b=%yy", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%yy"`)},
			{send: "GET @/f?a=%xx", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%xx"`)},
			{send: "GET @/f?a=1;b=2", status: 400, body: invalid(210, "Invalid POST form", `invalid semicolon separator in query`)},
			{send: "DELETE @/f?a=%xx", status: 400, body: invalid(210, "Invalid POST form", `invalid URL escape "%xx"`)},
			// A body of another type is no form.
			{send: "PUT @/t", form: "value=bar", typ: "text/plain", status: 201, body: `{"action":"set","node":{"key":"@/t","value":"","modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "PUT @/u", form: "value=bar", typ: "none", status: 201, body: `{"action":"set","node":{"key":"@/u","value":"","modifiedIndex":{+7},"createdIndex":{+7}}}`},
			{send: "PUT @/v", form: `{"value":"bar"}`, typ: "application/json", status: 201, body: `{"action":"set","node":{"key":"@/v","value":"","modifiedIndex":{+8},"createdIndex":{+8}}}`},
			{send: "PUT @/w", form: "value=bar", typ: "application/x-www-form-urlencoded; charset=utf-8", status: 201, body: `{"action":"set","node":{"key":"@/w","value":"bar","modifiedIndex":{+9},"createdIndex":{+9}}}`},
			{send: "PUT @/w2", form: "value=bar", typ: "APPLICATION/X-WWW-FORM-URLENCODED", status: 201, body: `{"action":"set","node":{"key":"@/w2","value":"bar","modifiedIndex":{+10},"createdIndex":{+10}}}`},
			{send: "PUT @/w", form: "value=bar", typ: "a;b=c;b=d", status: 400, body: invalid(210, "Invalid POST form", `mime: duplicate parameter name`)},
			{send: "POST @/p?value=1", form: "value=2", typ: "text/plain", status: 201, body: `~\{"action":"create","node":\{"key":"[^"]*","value":"1",.*`},
		}},
		{"paths", []row{
			{send: "PUT @/f", form: "value=1", status: 201, body: `~.*`},
			{send: "PUT @/dir/sub/", form: "value=2", status: 201, body: `{"action":"set","node":{"key":"@/dir/sub","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}}`},
			{send: "GET @//f", status: 301, body: `~<a href="/v2/keys[^"]*/f">Moved Permanently</a>.\n`},
			{send: "GET @/./x/../f", status: 301, body: `~<a href="/v2/keys[^"]*/f">Moved Permanently</a>.\n`},
			{send: "GET @/x%2F%2Fy/", status: 301, body: `~<a href="/v2/keys[^"]*/x/y/">Moved Permanently</a>.\n`},
			{send: "PUT @//f", form: "value=3", status: 301, body: `~.*`},
			{send: "HEAD @//f", status: 301},
			{send: "PUT @/a%2Fb", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/a/b","value":"1","modifiedIndex":{+3},"createdIndex":{+3}}}`},
			{send: "PUT @/sp%20ace%C3%A9%3Fq%3D1", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/sp aceé?q=1","value":"1","modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "GET @/sp%20ace%C3%A9%3Fq%3D1", status: 200, body: `{"action":"get","node":{"key":"@/sp aceé?q=1","value":"1","modifiedIndex":{+4},"createdIndex":{+4}}}`},
			{send: "PUT @/pl+us", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/pl+us","value":"1","modifiedIndex":{+5},"createdIndex":{+5}}}`},
			{send: "PUT @/quote%22%5C%3C%0A", form: "value=1", status: 201, body: `{"action":"set","node":{"key":"@/quote\"\\\u003c\n","value":"1","modifiedIndex":{+6},"createdIndex":{+6}}}`},
			{send: "GET /v2/keysfoo", status: 404, body: `404 page not found`, plain: true},
		}},
		{"methods", []row{
			{send: "PATCH @/f", status: 405, body: "Method Not Allowed", allow: methods, plain: true},
			{send: "TRACE @/f", status: 405, body: "Method Not Allowed", allow: methods, plain: true},
			{send: "FOO /v2/keys", status: 405, body: "Method Not Allowed", allow: methods, plain: true},
			{send: "PATCH @/f?recursive=maybe", form: "%", status: 405, body: "Method Not Allowed", allow: methods, plain: true},
			{send: "OPTIONS @/f", status: 200, body: "~", plain: true},
		}},
	}
}

// parameters has each parameter of a key malformed, in every method, and what is looked at first.
func parameters() []row {
	var rows []row
	add := func(method, query string, status int, body string) {
		rows = append(rows, row{send: method + " @/p?" + query, status: status, body: body})
	}
	for _, method := range []string{"GET", "PUT", "POST", "DELETE", "HEAD"} {
		for _, bad := range []string{"", "maybe", "tRue", "2", "+1", "yes"} {
			v := url.QueryEscape(bad)
			for _, name := range []string{"recursive", "sorted", "wait", "dir", "quorum", "stream", "noValueOnSuccess"} {
				add(method, name+"="+v, 400, field(`invalid value for "`+name+`"`))
			}
			add(method, "prevExist="+v, 400, field("invalid value for prevExist"))
			add(method, "refresh="+v, 400, field("invalid value for refresh"))
		}
		for _, bad := range []string{"", "x", "-1", "1.5", "0x10", "1_0", "18446744073709551616", "+1", " 1"} {
			v := url.QueryEscape(bad)
			add(method, "prevIndex="+v, 400, number("prevIndex"))
			add(method, "waitIndex="+v, 400, number("waitIndex"))
			if bad != "" { // which means: for ever
				add(method, "ttl="+v, 400, notTTL)
			}
		}
		add(method, "prevValue=", 400, emptyPrev)
		add(method, "prevValue", 400, emptyPrev)
		add(method, "refresh=true", 400, refreshless)
		add(method, "refresh=true&ttl=", 400, refreshless)
		add(method, "refresh=1&value=x&ttl=5", 400, refreshing)
		add(method, "refresh=T&value=x", 400, refreshing)
		if method != "GET" {
			add(method, "wait=true", 400, onlyGet)
		}
	}
	// Each is the reason before those after it.
	order := []struct{ query, body string }{
		{"a=%zz", invalid(210, "Invalid POST form", `invalid URL escape "%zz"`)},
		{"prevIndex=x", number("prevIndex")},
		{"waitIndex=x", number("waitIndex")},
		{"recursive=x", field(`invalid value for "recursive"`)},
		{"sorted=x", field(`invalid value for "sorted"`)},
		{"wait=x", field(`invalid value for "wait"`)},
		{"dir=x", field(`invalid value for "dir"`)},
		{"quorum=x", field(`invalid value for "quorum"`)},
		{"stream=x", field(`invalid value for "stream"`)},
		{"wait=true", onlyGet},
		{"prevValue=", emptyPrev},
		{"noValueOnSuccess=x", field(`invalid value for "noValueOnSuccess"`)},
		{"ttl=x", notTTL},
		{"prevExist=x", field("invalid value for prevExist")},
		{"refresh=x", field("invalid value for refresh")},
	}
	for i, first := range order {
		queries := []string{}
		for j := len(order) - 1; j >= i; j-- {
			if j != i && order[j].query == "wait=true" {
				continue // a parameter is named once here: the first one counts
			}
			queries = append(queries, order[j].query)
		}
		add("PUT", strings.Join(queries, "&"), 400, first.body)
	}
	for _, yes := range []string{"1", "t", "T", "TRUE", "true", "True"} {
		rows = append(rows, row{send: "PUT @/yes-" + yes + "?prevExist=0", form: "dir=" + yes, status: 201, body: `~\{"action":"create","node":\{"key":"[^"]*","dir":true,.*`})
	}
	for _, no := range []string{"0", "f", "F", "FALSE", "false", "False"} {
		rows = append(rows, row{send: "PUT @/no-" + no + "?prevExist=" + no, form: "dir=" + no + "&refresh=" + no + "&wait=" + no, status: 201, body: `~\{"action":"create","node":\{"key":"[^"]*","value":"",.*`})
	}
	return rows
}

// headers compares what is not in the body: sizes, indexes and what HEAD says.
func headers(r *run) {
	r.must("PUT @/f", "value=1")
	get := r.do(row{send: "GET @/f"})
	head := r.do(row{send: "HEAD @/f"})
	if want := fmt.Sprint(len(get.body)); get.header.Get("Content-Length") != want || head.header.Get("Content-Length") != want {
		r.Errorf("Content-Length of GET %q and HEAD %q, want %s", get.header.Get("Content-Length"), head.header.Get("Content-Length"), want)
	}
	for _, a := range []answer{get, head} {
		if got, want := a.header.Get("X-Etcd-Index"), fmt.Sprint(r.base+1); got != want {
			r.Errorf("X-Etcd-Index %s, want %s", got, want)
		}
	}
	missing, none := r.do(row{send: "GET @/none"}), r.do(row{send: "HEAD @/none"})
	if missing.header.Get("Content-Length") != none.header.Get("Content-Length") {
		r.Errorf("Content-Length %q of HEAD, %q of GET", none.header.Get("Content-Length"), missing.header.Get("Content-Length"))
	}
	raft := func(a answer) (n uint64) {
		if _, err := fmt.Sscan(a.header.Get("X-Raft-Index"), &n); err != nil {
			r.Errorf("X-Raft-Index: %v", err)
		}
		return n
	}
	if put := r.must("PUT @/f", "value=2"); raft(put) <= raft(get) {
		r.Errorf("X-Raft-Index did not grow with a write: %d, then %d", raft(get), raft(put))
	}
	for _, path := range []string{"/v2/keys", "/v2/members", "/v2/auth/enable"} {
		if id := r.do(row{send: "GET " + path}).header.Get("X-Etcd-Cluster-Id"); id != get.header.Get("X-Etcd-Cluster-Id") {
			r.Errorf("%s: X-Etcd-Cluster-Id %q, elsewhere %q", path, id, get.header.Get("X-Etcd-Cluster-Id"))
		}
	}
	for _, path := range []string{"/v2/machines", "/v2/stats/self", "/v2/stats/store", "/version", "/health"} {
		if id := r.do(row{send: "GET " + path}).header.Get("X-Etcd-Cluster-Id"); id != "" {
			r.Errorf("%s: X-Etcd-Cluster-Id %q", path, id)
		}
	}
}

// values writes what JSON has to escape, and a value larger than any buffer.
func values(r *run) {
	all := make([]byte, 0, 300)
	for i := range 256 {
		all = append(all, byte(i))
	}
	all = append(all, "\u2028\u2029\u00e9\U0001F600\xed\xa0\x80\xff"...)
	const want = `\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007`
	a := r.must("PUT @/bytes", "value="+url.QueryEscape(string(all)))
	if !strings.Contains(a.body, want) || !strings.Contains(a.body, `\t\n\u000b\u000c\r\u000e`) && !strings.Contains(a.body, `\t\n\u000b\f\r\u000e`) {
		r.Errorf("control characters come as %s", a.body)
	}
	for _, part := range []string{`!\"#$%\u0026'()*+,-./0123456789:;\u003c=\u003e?@A`, `[\\]^`, "}~\x7f\\ufffd\\ufffd", `\u2028\u2029é😀\ufffd\ufffd\ufffd\ufffd"`} {
		if !strings.Contains(a.body, part) {
			r.Errorf("%s is missing in %s", part, a.body)
		}
	}
	long := strings.Repeat("0123456789abcdef", 40_000)
	r.must("PUT @/long", "value="+long)
	a = r.do(row{send: "GET @/long"})
	if !strings.Contains(a.body, `"value":"`+long+`"`) {
		r.Errorf("a long value comes back with %d bytes", len(a.body))
	}
	// The original sends what is longer than its buffer in chunks.
	if size := a.header.Get("Content-Length"); !r.Etcd && size != fmt.Sprint(len(a.body)) {
		r.Errorf("Content-Length %q of %d bytes", size, len(a.body))
	}
}
