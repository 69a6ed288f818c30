package objects

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
)

// Copy returns an object that shares nothing with o that can be changed.
func Copy[T Object](o T) T {
	from := reflect.ValueOf(o).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	if c := cloners[o.Kind()]; c != nil {
		c(to.Elem())
	}
	return to.Interface().(T)
}

// A cloner gives a value, which is the copy of another, its own of whatever both point to.
type cloner func(v reflect.Value)

// cloners are made once for all kinds.
var cloners = func() (c [KindCount]cloner) {
	for k := Kind(1); k.Known(); k++ {
		c[k] = clonerOf(reflect.TypeOf(k.New()).Elem())
	}
	return c
}()

// clonerOf returns nil for a type whose values share nothing. It panics for one that cannot be copied, and so at the start
// of any program with such an object.
func clonerOf(t reflect.Type) cloner {
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64, reflect.String:
		return nil
	case reflect.Struct:
		return structCloner(t)
	case reflect.Pointer:
		inner := clonerOf(t.Elem())
		return func(v reflect.Value) {
			if v.IsNil() {
				return
			}
			p := reflect.New(t.Elem())
			p.Elem().Set(v.Elem())
			if inner != nil {
				inner(p.Elem())
			}
			v.Set(p)
		}
	case reflect.Slice:
		return sliceCloner(t)
	case reflect.Map:
		return mapCloner(t)
	}
	panic(fmt.Sprintf("objects: a %s cannot be copied", t))
}

// structCloner takes structs with private fields for values, as times and addresses are.
func structCloner(t reflect.Type) cloner {
	type part struct {
		at    int
		clone cloner
	}
	var parts []part
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			return nil
		}
		if c := clonerOf(t.Field(i).Type); c != nil {
			parts = append(parts, part{i, c})
		}
	}
	if parts == nil {
		return nil
	}
	return func(v reflect.Value) {
		for _, p := range parts {
			p.clone(v.Field(p.at))
		}
	}
}

func sliceCloner(t reflect.Type) cloner {
	switch t {
	case reflect.TypeFor[[]byte]():
		return func(v reflect.Value) { own(v, slices.Clone[[]byte]) }
	case reflect.TypeFor[[]string]():
		return func(v reflect.Value) { own(v, slices.Clone[[]string]) }
	}
	inner := clonerOf(t.Elem())
	return func(v reflect.Value) {
		if v.IsNil() {
			return
		}
		s := reflect.MakeSlice(t, v.Len(), v.Len())
		reflect.Copy(s, v)
		for i := 0; inner != nil && i < s.Len(); i++ {
			inner(s.Index(i))
		}
		v.Set(s)
	}
}

func mapCloner(t reflect.Type) cloner {
	if t == reflect.TypeFor[map[string]string]() {
		return func(v reflect.Value) { own(v, maps.Clone[map[string]string]) }
	}
	if clonerOf(t.Key()) != nil {
		panic(fmt.Sprintf("objects: a %s cannot be copied", t))
	}
	inner := clonerOf(t.Elem())
	return func(v reflect.Value) {
		if v.IsNil() {
			return
		}
		m := reflect.MakeMapWithSize(t, v.Len())
		value := reflect.New(t.Elem()).Elem()
		for i := v.MapRange(); i.Next(); {
			value.Set(i.Value())
			if inner != nil {
				inner(value)
			}
			m.SetMapIndex(i.Key(), value)
		}
		v.Set(m)
	}
}

// own is for the types that most maps and slices have, without the detour over their parts.
func own[T any](v reflect.Value, clone func(T) T) {
	if !v.IsNil() {
		p := v.Addr().Interface().(*T)
		*p = clone(*p)
	}
}
