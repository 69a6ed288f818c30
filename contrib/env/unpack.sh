#!/usr/bin/env bash
# unpack.sh SUITE DIR PACKAGE...: unpack packages of a Debian suite, with what they depend on, into DIR. Nothing is
# installed on the host: the packages' own scripts do not run. The mirror is the one that this machine's apt uses.
set -euo pipefail
suite=$1 dir=$2
shift 2
. "$(dirname "$0")/mirror.sh"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
opts=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::Lists=$work/lists"
      -o "Dir::Cache=$work/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o Acquire::Retries=3)
apt-get "${opts[@]}" update -qq
apt-get "${opts[@]}" install -y -qq --no-install-recommends --download-only "$@" >/dev/null
mkdir -p "$dir"
for deb in "$work"/cache/archives/*.deb; do
  # Newer packages put files below /usr where older ones have /bin, /sbin and /lib: one directory for both.
  for l in bin sbin lib lib64; do
    [ -e "$dir/$l" ] || { mkdir -p "$dir/usr/$l"; ln -s "usr/$l" "$dir/$l"; }
  done
  dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$dir"
done
