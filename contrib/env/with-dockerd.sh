#!/usr/bin/env bash
# with-dockerd.sh DATA_ROOT COMMAND [ARG...]: run COMMAND while a real dockerd serves DATA_ROOT, with DOCKER_HOST set.
# dockerd runs in a chroot of its own, in mount and network namespaces that COMMAND shares, and ends with it: it
# touches nothing of this host but its cgroups. DOCKERD_FLAGS adds flags, and the files of the directory DOCKERD_ETC lie
# over those of its /etc: then it has its mounts for itself, as the kernel makes no user namespace in a chroot. Its log is DOCKERD_LOG, else thrown away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${WITH_DOCKERD_INSIDE:-}" ]; then
  tree=$("$here/dockerd.sh")
  WITH_DOCKERD_INSIDE=$tree exec unshare -m -n --propagation private "$0" "$@"
fi
tree=$WITH_DOCKERD_INSIDE
unset WITH_DOCKERD_INSIDE
root=$(realpath "$1")
shift
run=$(mktemp -d /tmp/with-dockerd.XXXXXX)
ip link set lo up
mkdir -p "$tree/var/lib/docker"
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount --bind "$run" "$tree/run"
mount -t tmpfs tmpfs "$tree/tmp"
mount --bind "$root" "$tree/var/lib/docker"
enter=(chroot "$tree")
if [ -n "${DOCKERD_ETC:-}" ]; then
  mount -t overlay -o "lowerdir=$DOCKERD_ETC:$tree/etc" overlay "$tree/etc"
  # shellcheck disable=SC2016 # the shell that runs it expands it
  enter=(unshare -m --propagation unchanged sh -c 'cd "$0" && mkdir tmp/host && pivot_root . tmp/host && exec "$@"' "$tree")
fi
[ -L "$tree/var/run" ] || { rm -rf "$tree/var/run"; ln -sfn ../run "$tree/var/run"; }
"${enter[@]}" /usr/sbin/dockerd -H unix:///run/docker.sock ${DOCKERD_FLAGS:-} >"${DOCKERD_LOG:-/dev/null}" 2>&1 &
daemon=$!
end() {
  kill "$daemon" 2>/dev/null || true
  wait "$daemon" || true
  umount -R -l "$tree/run" # network namespaces are mounted below it
  rm -rf "$run"
}
trap end EXIT
for _ in $(seq 300); do
  [ -S "$run/docker.sock" ] && curl -sf --unix-socket "$run/docker.sock" http://d/_ping >/dev/null && break
  kill -0 "$daemon" 2>/dev/null || { echo "with-dockerd.sh: dockerd ended; see DOCKERD_LOG" >&2; exit 1; }
  read -rt 0.1 <> <(:) || true
done
export DOCKER_HOST=unix://$run/docker.sock
"$@"
