#!/usr/bin/env bash
# debian.sh: print the root directory of a small Debian that boots a systemd, made in the test cache. Tests run copies
# of it under systemd-nspawn and in a virtual machine; it is not to be changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/cache.sh"
make_tree() {
  . "$here/mirror.sh"
  command -v mmdebstrap >/dev/null || "$here/../deps.sh" test
  mmdebstrap --quiet --variant=essential --include=systemd,systemd-sysv,dbus,iproute2,procps,kmod,dmsetup,e2fsprogs \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$1/root" "$mirror"
  rm -rf "$1"/root/var/cache/apt/* "$1"/root/var/lib/apt/lists/* "$1"/root/usr/share/zoneinfo/*
  # Nobody logs in, and nothing is fetched.
  local unit
  for unit in getty.target console-getty.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
      e2scrub_all.timer fstrim.timer e2scrub_reap.service systemd-timesyncd.service systemd-udevd.service systemd-udev-trigger.service; do
    ln -sfn /dev/null "$1/root/etc/systemd/system/$unit"
  done
  : >"$1/root/etc/machine-id"
  echo stated-test >"$1/root/etc/hostname"
}
once debian make_tree
echo "$cache/debian/root"
