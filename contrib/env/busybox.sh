#!/usr/bin/env bash
# busybox.sh: print the path of a tar that holds a root file system with a static busybox and its links, which tests
# import as an image.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
make_tar() {
  "$here/unpack.sh" "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$1/pkg" busybox-static
  local root=$1/root
  mkdir -p "$root"/{bin,etc,tmp,root,proc,sys,dev,var/log}
  chmod 1777 "$root/tmp"
  cp -L "$1"/pkg/bin/busybox "$root/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  echo 'user:x:1000:1000:user:/tmp:/bin/sh' >>"$root/etc/passwd"
  printf 'root:x:0:\nuser:x:1000:\nextra:x:2000:user\n' >"$root/etc/group"
  tar -C "$root" --owner=0 --group=0 --numeric-owner -cf "$1/busybox.tar" .
  rm -rf "$root" "$1/pkg"
}
once busybox make_tar
echo "$cache/busybox/busybox.tar"
