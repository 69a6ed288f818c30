package daemon

import (
	"context"
	"os"
	"path/filepath"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/adopt"
)

// clusterSubsystem is the name of the replicated log and what it carries.
const clusterSubsystem = "cluster"

// Doctor lists what every subsystem has set aside or found wrong. It repairs nothing.
func (d *Daemon) Doctor(context.Context) types.Doctor {
	doc := types.Doctor{Problems: []types.Finding{}, Notes: []types.Finding{}}
	problem := func(subsystem, object, text string) {
		doc.Problems = append(doc.Problems, types.Finding{Subsystem: subsystem, Object: object, Text: text})
	}
	note := func(subsystem, object, text string) {
		doc.Notes = append(doc.Notes, types.Finding{Subsystem: subsystem, Object: object, Text: text})
	}
	for _, p := range d.layers.Problems() {
		object := p.Layer.String()
		if p.RW != "" {
			object = p.RW
		}
		problem(adopt.Layers, object, p.Err.Error())
	}
	for _, name := range d.layers.Names() {
		if !d.containers.Exists(name) {
			note(adopt.Layers, name, "a writable layer without a container: is the containers directory there? It is kept while the root has no container at all")
		}
	}
	for _, p := range d.images.Problems() {
		text := p.Err.Error()
		if p.Layer != "" {
			text += " (layer " + p.Layer.String() + ")"
		}
		problem(adopt.Images, p.Image.String(), text)
	}
	for _, p := range d.volumes.Problems() {
		object := p.Volume
		if object == "" {
			object = "driver " + p.Driver
		}
		problem(adopt.Volumes, object, p.Text)
	}
	for _, p := range d.networks.Problems() {
		problem(adopt.Networks, p.Object, p.Text)
	}
	for _, p := range d.containers.Problems() {
		problem(adopt.Containers, p.ID, p.Reason)
	}
	if err := d.keys.log.Stats().Fault; err != nil {
		problem(clusterSubsystem, "", "the disk refused the last write of the log: "+err.Error())
	}
	for _, path := range d.keys.log.SetAside() {
		problem(clusterSubsystem, path, "a damaged snapshot; the one before it and the log made up for it")
	}
	for _, text := range d.repaired {
		note(adopt.Layers, "repaired at the start", text)
	}
	for _, path := range d.replayed.Kept {
		problem("journal", path, "it was written by somebody else after stated's last change, which was dropped")
	}
	for _, path := range d.replayed.Replayed {
		note("journal", path, "it was written again at the start")
	}
	if d.replayed.Torn {
		note("journal", "", "the last change before the start was incomplete; nobody had been told that it was made")
	}
	if _, err := os.Stat(filepath.Join(d.cfg.Root, "swarm", "docker-state.json")); err == nil {
		note(adopt.Root, "swarm", "this host was in a swarm under dockerd; its state is left alone")
	}
	backups, err := filepath.Glob(d.statePath("backup-*"))
	if err == nil && len(backups) > 0 {
		note(adopt.Root, backups[0], "the records as dockerd left them, copied before stated's first change")
	}
	return doc
}
