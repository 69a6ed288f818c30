package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// file is one entry of an archive that a test makes.
type file struct {
	name string
	data []byte
	link string // symbolic link
	hard string // hard link
	kind byte
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(1, 0)}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case f.hard != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.hard
		case f.kind != 0:
			h.Typeflag = f.kind
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerTar is a layer of one file that holds text.
func layerTar(t testing.TB, text string) []byte {
	return tarOf(t, file{name: "f-" + text, data: []byte(text)})
}

// madeImage is an image on its way into an archive.
type madeImage struct {
	config []byte
	id     digest.Digest
	layers [][]byte // plain
}

// make1 makes an image whose layers hold one text each.
func makeImage(t testing.TB, author string, texts ...string) madeImage {
	t.Helper()
	var img madeImage
	var diffIDs []digest.Digest
	var history []map[string]any
	for _, text := range texts {
		layer := layerTar(t, text)
		img.layers = append(img.layers, layer)
		diffIDs = append(diffIDs, digest.FromBytes(layer))
		history = append(history, map[string]any{"created": "2024-01-02T03:04:05Z", "created_by": "ADD " + text})
	}
	history = append(history, map[string]any{"created": "2024-01-02T03:04:06Z", "created_by": "CMD sh", "empty_layer": true})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "author": author, "created": "2024-01-02T03:04:05.5Z",
		"config":  map[string]any{"Cmd": []string{"sh"}, "Labels": map[string]string{"who": author}, "Hostname": "old"},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diffIDs},
		"history": history, "extra": "kept",
	})
	if err != nil {
		t.Fatal(err)
	}
	img.config, img.id = config, digest.FromBytes(config)
	return img
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// legacyArchive is what docker save wrote until Docker 24: id/layer.tar, here with the documents last.
func legacyArchive(t testing.TB, img madeImage, tags ...string) []byte {
	t.Helper()
	var files []file
	var layers []string
	for i, layer := range img.layers {
		name := fmt.Sprintf("layer%d/layer.tar", i)
		layers = append(layers, name)
		files = append(files, file{name: name, data: layer})
	}
	config := img.id.Encoded() + ".json"
	files = append(files, file{name: config, data: img.config},
		file{name: "manifest.json", data: toJSON(t, []any{map[string]any{"Config": config, "RepoTags": tags, "Layers": layers}})})
	return tarOf(t, files...)
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    map[string]string `json:"platform,omitempty"`
}

func blobFile(data []byte) file {
	return file{name: "blobs/sha256/" + digest.FromBytes(data).Encoded(), data: data}
}

func describe(mediaType string, data []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// ociImage returns the blobs of an image with gzipped layers and the descriptor of its manifest.
func ociImage(t testing.TB, img madeImage) ([]file, descriptor) {
	t.Helper()
	var layers []descriptor
	var files []file
	for _, layer := range img.layers {
		z := gz(t, layer)
		files = append(files, blobFile(z))
		layers = append(layers, describe("application/vnd.oci.image.layer.v1.tar+gzip", z))
	}
	files = append(files, blobFile(img.config))
	manifest := toJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("application/vnd.oci.image.config.v1+json", img.config), "layers": layers,
	})
	files = append(files, blobFile(manifest))
	return files, describe("application/vnd.oci.image.manifest.v1+json", manifest)
}

func ociIndex(t testing.TB, manifests ...descriptor) []byte {
	return toJSON(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests,
	})
}

func decode(t testing.TB, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}
