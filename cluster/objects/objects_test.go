package objects_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"stated.dev/stated/cluster/objects"
)

// fill gives everything that can be reached from v a value.
func fill(v reflect.Value, n *int) {
	*n++
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = time.Date(2026, 1, 2, 3, 4, 5, *n, time.UTC)
		return
	case *netip.Addr:
		*x = netip.AddrFrom4([4]byte{10, 0, 0, byte(*n)})
		return
	case *netip.Prefix:
		*x = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(*n), 0}), 24)
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 200))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(0.5)
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	default:
		panic(v.Type().String())
	}
}

// references collects where a value points to.
func references(v reflect.Value, found map[uintptr]string, path string) {
	if v.Kind() == reflect.Struct && v.NumField() > 0 && !v.Type().Field(0).IsExported() {
		return
	}
	if k := v.Kind(); (k == reflect.Pointer || k == reflect.Slice || k == reflect.Map) && v.IsNil() {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.Elem().Type().Size() > 0 {
			found[v.Pointer()] = path
		}
		references(v.Elem(), found, path)
	case reflect.Slice:
		found[v.Pointer()] = path
		for i := range v.Len() {
			references(v.Index(i), found, fmt.Sprint(path, "[", i, "]"))
		}
	case reflect.Map:
		found[v.Pointer()] = path
		for i := v.MapRange(); i.Next(); {
			references(i.Value(), found, path+"[]")
		}
	case reflect.Struct:
		for i := range v.NumField() {
			references(v.Field(i), found, path+"."+v.Type().Field(i).Name)
		}
	}
}

var exact = cmp.Exporter(func(reflect.Type) bool { return true })

func TestEncodeAndCopy(t *testing.T) {
	for k := objects.Kind(1); k.Known(); k++ {
		t.Run(k.String(), func(t *testing.T) {
			full := k.New()
			n := 0
			fill(reflect.ValueOf(full).Elem(), &n)
			for _, o := range []objects.Object{full, k.New()} {
				if o.Kind() != k {
					t.Errorf("a %s is a %s", k, o.Kind())
				}
				b, err := objects.Append([]byte("x"), o)
				if err != nil {
					t.Fatal(err)
				}
				again, err := objects.Decode(k, b[1:])
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(o, again) {
					t.Errorf("it is not the same when it was decoded: %s", cmp.Diff(o, again, exact))
				}
				c := objects.Copy(o)
				if !reflect.DeepEqual(o, c) {
					t.Error("the copy is not the same")
				}
				ours, theirs := map[uintptr]string{}, map[uintptr]string{}
				references(reflect.ValueOf(o), ours, "")
				references(reflect.ValueOf(c), theirs, "")
				for p, path := range theirs {
					if ours[p] != "" {
						t.Errorf("the copy shares %s", path)
					}
				}
			}
			again, err := objects.Decode(k, []byte("\x01"+`{"ID":"a","Later":{"x":[1]}}`))
			if err != nil || again.Head().ID != "a" {
				t.Errorf("a field of a later version: %v, %v", again, err)
			}
			if _, err := objects.Decode(k, []byte("\x02{}")); err == nil {
				t.Error("a later version is read")
			}
			if _, err := objects.Decode(k, nil); err == nil {
				t.Error("nothing is read")
			}
		})
	}
	if _, err := objects.Decode(objects.Kind(objects.KindCount), []byte("\x01{}")); err == nil {
		t.Error("an unknown kind is read")
	}
}

func TestNames(t *testing.T) {
	task := &objects.Task{Header: objects.Header{ID: "id"}, ServiceAnnotations: objects.Annotations{Name: "web"}, NodeID: "n"}
	if got := task.Name(); got != "web.n.id" {
		t.Errorf("a global service's task is called %s", got)
	}
	task.Slot = 3
	if got := task.Name(); got != "web.3.id" {
		t.Errorf("a task is called %s", got)
	}
	task.Annotations.Name = "own"
	if got := task.Name(); got != "own" {
		t.Errorf("a task with a name is called %s", got)
	}
	if !objects.Builtin("Service") || objects.Builtin("services") || objects.Builtin("") {
		t.Error("the names of kinds are not known")
	}
	seen := map[string]bool{}
	for range 1000 {
		id := objects.NewID()
		if len(id) != objects.IDLen || seen[id] || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
			t.Fatalf("an ID is %q", id)
		}
		seen[id] = true
	}
}
