#!/usr/bin/env bash
# deps.sh run|test: install what building and running (or testing) stated needs and this Debian does not have.
set -euo pipefail
need=()
want() { command -v "$1" >/dev/null || need+=("$2"); }
want gcc gcc
want ip iproute2
want ps procps
want pkg-config pkg-config
[ -e /usr/include/seccomp.h ] || need+=(libseccomp-dev libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || need+=(ca-certificates)
if [ "${1:-run}" = test ]; then
  want nft nftables
  want mkfs.xfs xfsprogs
  want mkfs.btrfs btrfs-progs
  want mkfs.ext4 e2fsprogs
  want curl curl
  want strace strace
  want iptables-restore iptables # criu holds connections still with it
  want setfattr attr
  want cpio cpio
  want openssl openssl
  want modprobe kmod
  want dmsetup dmsetup
  want patchelf patchelf
  want mmdebstrap mmdebstrap
  want systemd-nspawn systemd-container
  want qemu-system-x86_64 qemu-system-x86
fi
[ ${#need[@]} = 0 ] && exit 0
sudo=; [ "$(id -u)" = 0 ] || sudo=sudo
echo "installing ${need[*]}"
$sudo apt-get -o Acquire::Retries=3 update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends "${need[@]}" >/dev/null
