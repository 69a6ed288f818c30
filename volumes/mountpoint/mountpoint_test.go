package mountpoint_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/mount"

	"stated.dev/stated/volumes/mountpoint"
)

// The records are what dockerd 28.5 writes into config.v2.json for the same request.
func TestRecordJSON(t *testing.T) {
	for _, tt := range []struct{ name, bind, want string }{
		{"bind", "/src:/dst", `{"Source":"/src","Destination":"/dst","RW":true,"Name":"","Driver":"","Type":"bind","Propagation":"rprivate","Spec":{"Type":"bind","Source":"/src","Target":"/dst"},"SkipMountpointCreation":false}`},
		{"read-only bind", "/src/:/dst/:ro", `{"Source":"/src","Destination":"/dst","RW":false,"Name":"","Driver":"","Type":"bind","Relabel":"ro","Propagation":"rprivate","Spec":{"Type":"bind","Source":"/src/","Target":"/dst/","ReadOnly":true},"SkipMountpointCreation":false}`},
		{"propagation", "/src:/dst:rw,rslave,Z", `{"Source":"/src","Destination":"/dst","RW":true,"Name":"","Driver":"","Type":"bind","Relabel":"rw,rslave,Z","Propagation":"rslave","Spec":{"Type":"bind","Source":"/src","Target":"/dst","BindOptions":{"Propagation":"rslave"}},"SkipMountpointCreation":false}`},
		{"named volume", "data:/dst", `{"Source":"/vol","Destination":"/dst","RW":true,"Name":"data","Driver":"local","Type":"volume","Relabel":"z","Spec":{"Type":"volume","Source":"data","Target":"/dst"},"SkipMountpointCreation":false}`},
		{"nocopy", "data:/dst:nocopy", `{"Source":"/vol","Destination":"/dst","RW":true,"Name":"data","Driver":"local","Type":"volume","Relabel":"nocopy","Spec":{"Type":"volume","Source":"data","Target":"/dst","VolumeOptions":{"NoCopy":true}},"SkipMountpointCreation":false}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan, err := mountpoint.Build(mountpoint.Input{Binds: []string{tt.bind}})
			if err != nil {
				t.Fatal(err)
			}
			for _, need := range plan.Volumes {
				need.Fill(need.Name, "local", "/vol")
			}
			got, err := json.Marshal(plan.Points["/dst"])
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Error(diff)
			}
			var back mountpoint.MountPoint
			if err := json.Unmarshal(got, &back); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestRecordOfImageVolume(t *testing.T) {
	plan, err := mountpoint.Build(mountpoint.Input{Volumes: map[string]struct{}{"/data/": {}}})
	if err != nil {
		t.Fatal(err)
	}
	plan.Volumes[0].Fill("cafe", "local", "/vol")
	got, _ := json.Marshal(plan.Points["/data"])
	want := `{"Source":"","Destination":"/data","RW":true,"Name":"cafe","Driver":"local","Type":"volume","Spec":{},"SkipMountpointCreation":false}`
	if string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if !plan.Volumes[0].FromImage || plan.Volumes[0].Existing || plan.Volumes[0].Name != "" {
		t.Errorf("need is %+v", plan.Volumes[0])
	}
}

func TestRecordOfImage(t *testing.T) {
	plan, err := mountpoint.Build(mountpoint.Input{Mounts: []mount.Mount{{Type: "image", Source: "other:1", Target: "/t/", ImageOptions: &mount.ImageOptions{Subpath: "a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	if n := plan.Images[0]; n.Ref != "other:1" || n.Layer != "" || n.Point.Subpath() != "a" {
		t.Errorf("%+v", n)
	}
	plan.Images[0].Fill("sha256:cafe", "id-other:1")
	plan.Points["/t"].Source = "/merged"
	const want = `{"Source":"/merged","Destination":"/t","RW":false,"Name":"other:1","Driver":"","Type":"image","Propagation":"rprivate","ID":"id-other:1","Spec":{"Type":"image","Source":"sha256:cafe","Target":"/t/","ImageOptions":{"Subpath":"a"}},"SkipMountpointCreation":false}`
	if got, _ := json.Marshal(plan.Points["/t"]); string(got) != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
	// What another container takes over is the same image through a layer of its own.
	from, err := mountpoint.Build(mountpoint.Input{VolumesFrom: []mountpoint.Source{{Points: plan.Points, Mode: "rw"}}})
	if err != nil {
		t.Fatal(err)
	}
	if n := from.Images[0]; n.Ref != "sha256:cafe" || n.Layer != "id-other:1" || n.Point.Name != "other:1" || n.Point.ID != "" || n.Point.Subpath() != "a" {
		t.Errorf("%+v, %+v", n, n.Point)
	}
}

func TestLabel(t *testing.T) {
	for mode, want := range map[string]string{"": "", "ro": "", "z": "z", "ro,Z": "Z", "nocopy,z": "z"} {
		if got := (&mountpoint.MountPoint{Mode: mode}).Label(); got != want {
			t.Errorf("%q: %q, want %q", mode, got, want)
		}
	}
}

func TestParseShort(t *testing.T) {
	for _, text := range []string{
		"/dst", "name:/dst", "/src:/dst", "/src:/dst:rw", "/src:/dst:ro", "/src:/dst:z", "/src:/dst:Z,ro",
		"/src:/dst:private", "/src:/dst:rprivate", "/src:/dst:slave", "/src:/dst:rslave", "/src:/dst:shared", "/src:/dst:rshared,ro",
		"name:/dst:nocopy", "name:/dst:nocopy,ro,z", "/src:/dst:consistent", "/src:/dst:cached,ro", "/src:/dst:delegated",
		"/src with space:/dst", "name:/dst:",
	} {
		if mp, err := mountpoint.ParseShort(text, ""); err != nil || mp.Destination != "/dst" {
			t.Errorf("%q: %+v, %v", text, mp, err)
		}
	}
	for _, tt := range []struct{ text, want string }{
		{"", "invalid volume specification: ''"},
		{":/dst", "invalid volume specification: ':/dst'"},
		{"/dst:rw", "invalid volume specification: '/dst:rw'"},
		{"/dst:", "invalid volume specification: '/dst:'"},
		{"/dst:ro,z", "invalid volume specification: '/dst:ro,z'"},
		{"a:b:c:d", "invalid volume specification: 'a:b:c:d'"},
		{"/src:/dst:foo", "invalid mode: foo"},
		{"/src:/dst:ro,rw", "invalid mode: ro,rw"},
		{"/src:/dst:ro,ro", "invalid mode: ro,ro"},
		{"/src:/dst:z,Z", "invalid mode: z,Z"},
		{"/src:/dst:shared,slave", "invalid mode: shared,slave"},
		{"/src:/dst:cached,delegated", "invalid mode: cached,delegated"},
		{"/src:/dst:copy", "invalid mode: copy"},
		{"/src:/dst:,ro", "invalid mode: ,ro"},
		{"/", `invalid volume specification: '/': invalid mount config for type "volume": invalid specification: destination can't be '/'`},
		{"/src:/", `invalid volume specification: '/src:/': invalid mount config for type "bind": invalid specification: destination can't be '/'`},
		{"/src:dst", `invalid volume specification: '/src:dst': invalid mount config for type "bind": invalid mount path: 'dst' mount path must be absolute`},
		{"name:dst", `invalid volume specification: 'name:dst': invalid mount config for type "volume": invalid mount path: 'dst' mount path must be absolute`},
		{"name::ro", `invalid volume specification: 'name::ro': invalid mount config for type "volume": field Target must not be empty`},
		{"/src:/dst:nocopy", `invalid volume specification: '/src:/dst:nocopy': invalid mount config for type "bind": field VolumeOptions must not be specified`},
		{"name:/dst:shared", `invalid volume specification: 'name:/dst:shared': invalid mount config for type "volume": field BindOptions must not be specified`},
		{"name:/dst:consistent:ro", "invalid volume specification: 'name:/dst:consistent:ro'"},
	} {
		if _, err := mountpoint.ParseShort(tt.text, ""); text(err) != tt.want || errdefs.IsInvalidArgument(err) {
			t.Errorf("%s:\n got %q\nwant %q, without a class", tt.text, text(err), tt.want)
		}
	}
}

func TestShortVolumeDriver(t *testing.T) {
	mp, err := mountpoint.ParseShort("name:/dst", "flocker")
	if err != nil || mp.Driver != "flocker" || mp.Spec.VolumeOptions.DriverConfig.Name != "flocker" {
		t.Errorf("%+v, %v", mp, err)
	}
	mp, err = mountpoint.ParseShort("/src:/dst", "flocker")
	if err != nil || mp.Driver != "" || mp.Spec.VolumeOptions != nil {
		t.Errorf("a bind has no driver: %+v, %v", mp, err)
	}
}

func TestParseMount(t *testing.T) {
	for _, tt := range []struct {
		name string
		m    mount.Mount
		want string // empty: accepted
	}{
		{"bind", mount.Mount{Type: "bind", Source: "/s", Target: "/t"}, ""},
		{"volume", mount.Mount{Type: "volume", Source: "v", Target: "/t"}, ""},
		{"anonymous volume", mount.Mount{Type: "volume", Target: "/t"}, ""},
		{"subpath", mount.Mount{Type: "volume", Source: "v", Target: "/t", VolumeOptions: &mount.VolumeOptions{Subpath: "a/b"}}, ""},
		{"tmpfs", mount.Mount{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"exec"}}}}, ""},
		{"image", mount.Mount{Type: "image", Source: "busybox", Target: "/t"}, ""},

		{"no type", mount.Mount{Target: "/t"}, `invalid mount config for type "": mount type unknown`},
		{"npipe", mount.Mount{Type: "npipe", Source: "x", Target: "/t"}, `invalid mount config for type "npipe": mount type unknown`},
		{"cluster", mount.Mount{Type: "cluster", Source: "x", Target: "/t"}, `invalid mount config for type "cluster": mount type unknown`},
		{"no target", mount.Mount{Type: "bind", Source: "/s"}, `invalid mount config for type "bind": field Target must not be empty`},
		{"root", mount.Mount{Type: "tmpfs", Target: "/a/.."}, `invalid mount config for type "tmpfs": invalid specification: destination can't be '/'`},
		{"relative target", mount.Mount{Type: "tmpfs", Target: "a"}, `invalid mount config for type "tmpfs": invalid mount path: 'a' mount path must be absolute`},
		{"bind without source", mount.Mount{Type: "bind", Target: "/t"}, `invalid mount config for type "bind": field Source must not be empty`},
		{"relative source", mount.Mount{Type: "bind", Source: "s", Target: "/t"}, `invalid mount config for type "bind": invalid mount path: 's' mount path must be absolute`},
		{"bind propagation", mount.Mount{Type: "bind", Source: "/s", Target: "/t", BindOptions: &mount.BindOptions{Propagation: "odd"}}, `invalid mount config for type "bind": invalid propagation mode: odd`},
		{"bind with volume options", mount.Mount{Type: "bind", Source: "/s", Target: "/t", VolumeOptions: &mount.VolumeOptions{}}, `invalid mount config for type "bind": field VolumeOptions must not be specified`},
		{"bind with image options", mount.Mount{Type: "bind", Source: "/s", Target: "/t", ImageOptions: &mount.ImageOptions{}}, `invalid mount config for type "bind": field ImageOptions must not be specified`},
		{"volume with bind options", mount.Mount{Type: "volume", Target: "/t", BindOptions: &mount.BindOptions{}}, `invalid mount config for type "volume": field BindOptions must not be specified`},
		{"volume with image options", mount.Mount{Type: "volume", Target: "/t", ImageOptions: &mount.ImageOptions{}}, `invalid mount config for type "volume": field ImageOptions must not be specified`},
		{"anonymous read-only", mount.Mount{Type: "volume", Target: "/t", ReadOnly: true}, `invalid mount config for type "volume": must not set ReadOnly mode when using anonymous volumes`},
		{"anonymous subpath", mount.Mount{Type: "volume", Target: "/t", VolumeOptions: &mount.VolumeOptions{Subpath: "a"}}, `invalid mount config for type "volume": must not set Subpath when using anonymous volumes`},
		{"subpath up", mount.Mount{Type: "volume", Source: "v", Target: "/t", VolumeOptions: &mount.VolumeOptions{Subpath: "../a"}}, `invalid mount config for type "volume": subpath must be a relative path within the volume`},
		{"subpath absolute", mount.Mount{Type: "volume", Source: "v", Target: "/t", VolumeOptions: &mount.VolumeOptions{Subpath: "/a"}}, `invalid mount config for type "volume": subpath must be a relative path within the volume`},
		{"tmpfs with bind options", mount.Mount{Type: "tmpfs", Target: "/t", BindOptions: &mount.BindOptions{}}, `invalid mount config for type "tmpfs": field BindOptions must not be specified`},
		{"tmpfs with image options", mount.Mount{Type: "tmpfs", Target: "/t", ImageOptions: &mount.ImageOptions{}}, `invalid mount config for type "tmpfs": field ImageOptions must not be specified`},
		{"tmpfs with source", mount.Mount{Type: "tmpfs", Source: "/s", Target: "/t"}, `invalid mount config for type "tmpfs": field Source must not be specified`},
		{"tmpfs option", mount.Mount{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"uid", "1"}}}}, `invalid mount config for type "tmpfs": invalid option: uid`},
		{"tmpfs option length", mount.Mount{Type: "tmpfs", Target: "/t", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{}}}}, `invalid mount config for type "tmpfs": invalid option array length`},
		{"image with bind options", mount.Mount{Type: "image", Source: "i", Target: "/t", BindOptions: &mount.BindOptions{}}, `invalid mount config for type "image": field BindOptions must not be specified`},
		{"image with volume options", mount.Mount{Type: "image", Source: "i", Target: "/t", VolumeOptions: &mount.VolumeOptions{}}, `invalid mount config for type "image": field VolumeOptions must not be specified`},
		{"image without source", mount.Mount{Type: "image", Target: "/t"}, `invalid mount config for type "image": field Source must not be empty`},
		{"image subpath", mount.Mount{Type: "image", Source: "i", Target: "/t", ImageOptions: &mount.ImageOptions{Subpath: "../x"}}, `invalid mount config for type "image": subpath must be a relative path within the volume`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := mountpoint.ParseMount(tt.m)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantInvalid(t, tt.name, err, tt.want)
		})
	}
}

func TestCheckSource(t *testing.T) {
	missing := func(string) (bool, error) { return false, nil }
	bind := mount.Mount{Type: "bind", Source: "/nowhere", Target: "/t"}
	wantInvalid(t, "missing", mountpoint.CheckSource(bind, missing), `invalid mount config for type "bind": bind source path does not exist: /nowhere`)
	bind.BindOptions = &mount.BindOptions{CreateMountpoint: true}
	if err := mountpoint.CheckSource(bind, missing); err != nil {
		t.Error(err)
	}
}

func TestCheckReadOnly(t *testing.T) {
	for _, tt := range []struct {
		readOnly, plain, force bool
		want                   string
	}{
		{false, true, false, "mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive"},
		{false, false, true, "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive"},
		{true, true, true, "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive"},
		{true, true, false, ""},
		{true, false, true, ""},
	} {
		err := mountpoint.CheckReadOnly(mount.Mount{Type: "bind", ReadOnly: tt.readOnly,
			BindOptions: &mount.BindOptions{ReadOnlyNonRecursive: tt.plain, ReadOnlyForceRecursive: tt.force}})
		if got := text(err); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

func TestParseVolumesFrom(t *testing.T) {
	for _, tt := range []struct{ text, id, mode, err string }{
		{"id", "id", "rw", ""},
		{"id:", "id", "rw", ""},
		{"id:ro", "id", "ro", ""},
		{"id:ro,z", "id", "ro,z", ""},
		{"", "", "", "volumes-from specification cannot be an empty string"},
		{"id:foo", "", "", "invalid mode: foo"},
		{"id:shared", "", "", "invalid mode: shared"},
		{"id:ro,rslave", "", "", "invalid mode: ro,rslave"},
		{"id:nocopy", "", "", "invalid mode: nocopy"},
		{"id:ro:rw", "", "", "invalid mode: ro:rw"},
	} {
		id, mode, err := mountpoint.ParseVolumesFrom(tt.text)
		if tt.err != "" {
			wantInvalid(t, tt.text, err, tt.err)
		} else if err != nil || id != tt.id || mode != tt.mode {
			t.Errorf("%q: %q, %q, %v", tt.text, id, mode, err)
		}
	}
}

func TestTmpfsData(t *testing.T) {
	for _, tt := range []struct {
		m    mount.Mount
		want string
	}{
		{mount.Mount{}, ""},
		{mount.Mount{ReadOnly: true}, "ro"},
		{mount.Mount{TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 30, Mode: 0o1770}}, "mode=1770,size=1g"},
		{mount.Mount{TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1536 << 10}}, "size=1536k"},
		{mount.Mount{TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 5 << 20}}, "size=5m"},
		{mount.Mount{TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1025}}, "size=1025"},
		{mount.Mount{ReadOnly: true, TmpfsOptions: &mount.TmpfsOptions{Mode: 0o700, SizeBytes: 4096, Options: [][]string{{"exec"}, {"noexec", "1"}}}}, "ro,mode=700,size=4k,exec,noexec=1"},
	} {
		tt.m.Type, tt.m.Target = "tmpfs", "/t"
		list, err := mountpoint.AllTmpfs(nil, map[string]*mountpoint.MountPoint{"/t": {Type: "tmpfs", Spec: tt.m}})
		if err != nil || len(list) != 1 || list[0].Data != tt.want {
			t.Errorf("want %q: %+v, %v", tt.want, list, err)
		}
	}
}

func TestParseTmpfs(t *testing.T) {
	_, err := mountpoint.ParseTmpfs("/", "")
	wantInvalid(t, "/", err, "invalid specification: destination can't be '/'")
	_, err = mountpoint.ParseTmpfs("run", "")
	wantInvalid(t, "run", err, "invalid mount path: 'run' mount path must be absolute")
	if got, err := mountpoint.ParseTmpfs("/run", "size=1m"); err != nil || got.Data != "size=1m" {
		t.Error(got, err)
	}
}

func TestBuildPrecedence(t *testing.T) {
	old := &mountpoint.MountPoint{Destination: "/a", Name: "old", Driver: "local", Type: "volume"}
	kept := &mountpoint.MountPoint{Destination: "/kept", Name: "kept", Driver: "local", Type: "volume"}
	other := map[string]*mountpoint.MountPoint{
		"/a": {Destination: "/a", Name: "from", Driver: "local", Type: "volume", Source: "/v/from", RW: true, Mode: "z", ID: "x"},
		"/b": {Destination: "/b", Name: "from", Driver: "local", Type: "volume", RW: true},
		"/c": {Destination: "/c", Name: "from", Driver: "local", Type: "volume", RW: true},
		"/d": {Destination: "/d", Type: "bind", Source: "/host", RW: true, Propagation: "rprivate"},
	}
	plan, err := mountpoint.Build(mountpoint.Input{
		Previous:    map[string]*mountpoint.MountPoint{"/a": old, "/kept": kept},
		VolumesFrom: []mountpoint.Source{{Points: other, Mode: "ro"}},
		Binds:       []string{"short:/b", "new:/e:ro"},
		Mounts: []mount.Mount{{Type: "volume", Source: "long", Target: "/c", VolumeOptions: &mount.VolumeOptions{
			Labels: map[string]string{"l": "1"}, DriverConfig: &mount.Driver{Name: "local", Options: map[string]string{"type": "tmpfs"}}}}},
		Tmpfs:   map[string]string{"/tmp": ""},
		Volumes: map[string]struct{}{"/a": {}, "/tmp": {}, "/anon": {}},
	})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for d, p := range plan.Points {
		got[d] = p.Name + p.Source
	}
	want := map[string]string{"/a": "from/v/from", "/kept": "kept", "/d": "/host", "/b": "short", "/e": "new", "/c": "long", "/anon": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if a := plan.Points["/a"]; a.RW || a.Mode != "" || a.ID != "" || a.CopyData {
		t.Errorf("volumes-from keeps neither mode nor id, and is read-only here: %+v", a)
	}
	var needs []string
	for _, n := range plan.Volumes {
		needs = append(needs, n.Point.Destination)
	}
	if diff := cmp.Diff([]string{"/a", "/b", "/e", "/c", "/anon"}, needs); diff != "" {
		t.Error(diff)
	}
	if n := plan.Volumes[3]; n.Labels["l"] != "1" || n.Options["type"] != "tmpfs" || n.Driver != "local" {
		t.Errorf("%+v", n)
	}
	if !plan.Volumes[0].Existing || plan.Volumes[1].Existing {
		t.Error("only volumes-from looks up")
	}
	if diff := cmp.Diff([]string{"old"}, plan.Released); diff != "" {
		t.Error(diff)
	}
}

func TestBuildDuplicates(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   mountpoint.Input
		want string
	}{
		{"binds", mountpoint.Input{Binds: []string{"a1:/d", "b1:/d/"}}, "Duplicate mount point: /d"},
		{"tmpfs", mountpoint.Input{Binds: []string{"a1:/d"}, Tmpfs: map[string]string{"/d": ""}}, "Duplicate mount point: /d"},
		{"bind and mount", mountpoint.Input{Binds: []string{"a1:/d"}, Mounts: []mount.Mount{{Type: "tmpfs", Target: "/d/"}}}, "Duplicate mount point: /d/"},
	} {
		_, err := mountpoint.Build(tt.in)
		wantInvalid(t, tt.name, err, tt.want)
	}
}

func TestBuildDaemonRoot(t *testing.T) {
	const root = "/var/lib/stated"
	for _, tt := range []struct {
		bind string
		want mount.Propagation
		err  string
	}{
		{"/:/host", "rslave", ""},
		{"/var/lib:/host:ro", "rslave", ""},
		{"/var/lib/stated/volumes:/host", "rslave", ""},
		{"/var/lib/stated2:/host", "rprivate", ""},
		{"/srv:/host", "rprivate", ""},
		{"/:/host:rshared", "rshared", ""},
		{"/:/host:rslave", "rslave", ""},
		{"/:/host:private", "", `invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, daemon root: "/var/lib/stated", bind mount source: "/", propagation: "private"`},
	} {
		plan, err := mountpoint.Build(mountpoint.Input{Binds: []string{tt.bind}, DataRoot: root})
		if tt.err != "" {
			wantInvalid(t, tt.bind, err, tt.err)
			continue
		}
		if err != nil || plan.Points["/host"].Propagation != tt.want {
			t.Errorf("%s: %+v, %v", tt.bind, plan.Points["/host"], err)
		}
	}
}

func TestBuildLeavesTheRequestAlone(t *testing.T) {
	m := mount.Mount{Type: "bind", Source: "/s", Target: "/t", ReadOnly: true, BindOptions: &mount.BindOptions{CreateMountpoint: true}}
	plan, err := mountpoint.Build(mountpoint.Input{Mounts: []mount.Mount{m}, ReadOnlyNonRecursive: true})
	if err != nil {
		t.Fatal(err)
	}
	p := plan.Points["/t"]
	if !p.Spec.BindOptions.ReadOnlyNonRecursive || p.SkipMountpointCreation {
		t.Errorf("%+v", p)
	}
	if m.BindOptions.ReadOnlyNonRecursive {
		t.Error("the request's options were changed")
	}
}

func TestSorted(t *testing.T) {
	points := map[string]*mountpoint.MountPoint{}
	for _, d := range []string{"/b/c/d", "/b", "/a/z", "/a", "/b/c"} {
		points[d] = &mountpoint.MountPoint{Destination: d}
	}
	var got []string
	for _, p := range mountpoint.Sorted(points) {
		got = append(got, p.Destination)
	}
	if diff := cmp.Diff([]string{"/a", "/b", "/a/z", "/b/c", "/b/c/d"}, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseShort(f *testing.F) {
	for _, s := range []string{"/dst", "a:/b", "/a:/b:ro,z", "::", "a:b:c:d", "/a:/b:shared"} {
		f.Add(s, "")
	}
	f.Fuzz(func(t *testing.T, text, driver string) {
		mp, err := mountpoint.ParseShort(text, driver)
		if err != nil {
			return
		}
		if mp.Destination == "/" || !strings.HasPrefix(mp.Destination, "/") && !strings.HasPrefix(mp.Destination, `\`) {
			t.Fatalf("%q: destination %q", text, mp.Destination)
		}
		if (mp.Type == mount.TypeBind) != (strings.HasPrefix(text, "/") && strings.Contains(text, ":")) {
			t.Fatalf("%q: type %s", text, mp.Type)
		}
		again, err := mountpoint.ParseMount(mp.Spec)
		if err != nil {
			t.Fatalf("%q: its own spec is refused: %v", text, err)
		}
		again.Mode = mp.Mode
		if diff := cmp.Diff(mp, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

func FuzzParseVolumesFrom(f *testing.F) {
	for _, s := range []string{"", "id", "id:ro", ":", "id:ro:x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, mode, err := mountpoint.ParseVolumesFrom(text)
		if err == nil && (mode == "" || !strings.HasPrefix(text, id)) {
			t.Fatalf("%q: %q %q", text, id, mode)
		}
	})
}

func wantInvalid(t *testing.T, what string, err error, want string) {
	t.Helper()
	if text(err) != want || !errdefs.IsInvalidArgument(err) {
		t.Errorf("%s:\n got %q\nwant %q (invalid argument: %v)", what, text(err), want, errdefs.IsInvalidArgument(err))
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
