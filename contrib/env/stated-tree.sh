#!/usr/bin/env bash
# stated-tree.sh DIR SUITE ARG...: make DIR a Debian with systemd, stated and its units, docker, mkfs.xfs and a busybox
# image, that runs the test binary SUITE with ARG... when it boots, keeps what that prints in DIR/suite/log and its exit code
# in DIR/suite/status, and powers off. The binaries are those on PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$1 suite=$2
shift 2
docker=$("$here/docker-cli.sh")
mkdir "$dir"
cp -a "$("$here/debian.sh")/." "$dir/"
install -t "$dir/usr/bin" "$(command -v stated)" "$(command -v stated-shim)" "$(command -v runc)"
install -m 644 -t "$dir/usr/lib/systemd/system" "$here/../systemd/stated.service" "$here/../systemd/stated.socket"
. "$here/cache.sh"
if [ "$docker" = "$cache/docker-cli.run" ]; then # a script that names a tree of its own
  mkdir -p "$dir$cache"
  cp -a "$cache/docker-cli" "$dir$cache/"
fi
mkfs=$(command -v mkfs.xfs)
install -t "$dir/usr/sbin" "$mkfs"
for library in $(for program in "$docker" "$(command -v runc)" "$mkfs"; do ldd "$program" 2>/dev/null | grep -o '/[^ ]*'; done); do
  [ -e "$dir$library" ] || install -D "$library" "$dir$library"
done
install "$docker" "$dir/usr/bin/docker"
mkdir "$dir/suite"
cp "$("$here/busybox.sh")" "$dir/suite/busybox.tar"
cp "$suite" "$dir/suite/suite.test"
cat >"$dir/etc/systemd/system/suite.service" <<UNIT
[Unit]
After=multi-user.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
Environment=STATED_INSIDE=1 HOME=/root STATED_SOAK=${STATED_SOAK:-}
WorkingDirectory=/suite
ExecStart=/bin/sh -c '/suite/suite.test $* >/suite/log 2>&1; echo \$? >/suite/status'
UNIT
# What takes a virtual machine long and nobody needs.
for unit in modprobe@.service systemd-logind.service systemd-user-sessions.service systemd-update-utmp.service; do
  ln -sfn /dev/null "$dir/etc/systemd/system/$unit"
done
mkdir -p "$dir/etc/systemd/system/default.target.wants"
ln -s ../suite.service "$dir/etc/systemd/system/default.target.wants/suite.service"
