// Package overlay2 keeps each layer as a directory and lets the kernel's overlayfs show them over each other. It
// reads and writes Docker's driver of the same name:
//
//	<home>/l/<26 characters>   symbolic link to ../<id>/diff, a short name for mount options
//	<home>/<id>/diff           the layer's own files; deletions are character devices 0/0
//	<home>/<id>/link           the name in l
//	<home>/<id>/lower          "l/<link>:l/<link>..." of the layers below, nearest first; absent in a base layer
//	<home>/<id>/work           overlayfs's own, beside diff when there is a lower
//	<home>/<id>/committed      empty; the layer has children and is mounted read only
//	<home>/<id>/merged         the mount point, there while mounted
//	<home>/<id>-removing       ours: a layer that is being deleted
//
// It never looks into other layers than those it is asked for, but in Repair and Sweep. Its mounts are counted by
// graphdriver.Mounts; everything else is in the directories, so there is no other lock.
package overlay2
