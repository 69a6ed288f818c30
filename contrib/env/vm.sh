#!/usr/bin/env bash
# vm.sh [-m MiB] [-t SECONDS] [-k MODULE]... [-x MODULE]... [-f FILE]... [-r DIR|IMAGE] [-d DISK]... -- PROGRAM [ARG...]
# Run a program as root in a small virtual machine and exit with its status. Its kernel (Debian 12's, 6.1) has what the
# host's may lack: device-mapper thin provisioning, dm-flakey, cgroup v2 alone, IPsec and more. qemu emulates it in
# software, so no KVM is needed: it boots in about 3 s and runs 10 to 20 times slower than the host.
#
#   without -r  the root is an initramfs: busybox, dmsetup, mkfs.ext4, mkfs.xfs, the static PROGRAM and each -f FILE
#   with -r     a copy of DIR becomes a disk of its own, mounted as root; PROGRAM is a path in it. A file is an ext4
#               image of such a disk, for many runs: what they write to it is thrown away.
#   -k, -x      one more kernel module, with what it depends on; one less: a boot is the faster for it
#   -d          a raw disk image, kept between runs: the guest's /dev/vdb and so on, /dev/vda without -r
#
# stdout and stderr are the guest's console. /scratch is a tmpfs for sparse files. A guest that powers itself off or
# crashes reports no status: vm.sh then exits with 124.
set -euo pipefail
mem=2048 limit=300 dir='' files=() disks=()
modules=(loop dm-mod dm-thin-pool dm-flakey dm-log-writes dm-delay overlay xfs btrfs \
  virtio_pci virtio_blk veth bridge vxlan nf_tables nft_chain_nat nft_masq nft_redir nft_ct nft_compat \
  nft_nat nft_fib_inet nf_conntrack_netlink tun unix_diag tcp_diag udp_diag netlink_diag af_packet_diag)
while [ "${1:-}" != -- ]; do
  case ${1:-} in
    -m) mem=$2;; -t) limit=$2;; -f) files+=("$2");; -k) modules+=("$2");; -x) modules=($(printf '%s\n' "${modules[@]}" | grep -vx "$2"));; -r) dir=$2;; -d) disks+=("$2");;
    *) sed -n 2p "$0" >&2; exit 2;;
  esac
  shift 2
done
shift
here=$(cd "$(dirname "$0")" && pwd)
for p in qemu-system-x86_64 cpio modprobe dmsetup mkfs.ext4 mkfs.xfs; do
  command -v $p >/dev/null || { "$here/../deps.sh" test; break; }
done

busybox=$("$here/busybox.sh")
kernel=$("$here/kernel.sh")
version=$(ls "$kernel/lib/modules")

work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
root=$work/root; mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,scratch,run,etc,mod,root,newroot}
tar -xf "$busybox" -C "$root" ./bin/busybox
for m in "${modules[@]}"; do # in dependency order, each once; built-in ones print nothing to insert
  modprobe -d "$kernel" -S "$version" --show-depends "$m" 2>/dev/null | awk '$1=="insmod"{print $2}' || true
done | awk '!seen[$0]++' >"$work/modules"
n=0; while read -r ko; do n=$((n+1)); cp "$ko" "$root/mod/$(printf %03d $n)-$(basename "$ko")"; done <"$work/modules"
copy() { cp -L "$1" "$root$2"; for l in $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do mkdir -p "$root$(dirname "$l")"; cp -nL "$l" "$root$l"; done; }
for b in dmsetup mkfs.ext4 mkfs.xfs blkid; do [ ! -x /usr/sbin/$b ] || copy /usr/sbin/$b /sbin/$b; done
disk=()
if [ -f "$dir" ]; then : >"$root/etc/disk-root"
  disk=(-drive "file=$dir,format=raw,if=virtio,snapshot=on"); program=$1
elif [ -n "$dir" ]; then : >"$root/etc/disk-root"
  size=$(( $(du -sm "$dir" | cut -f1) * 5 / 4 + 2048 )); truncate -s ${size}M "$work/disk"; mkfs.ext4 -q -d "$dir" "$work/disk"
  disk=(-drive "file=$work/disk,format=raw,if=virtio,cache=unsafe"); program=$1
else
  for f in "$1" ${files[@]+"${files[@]}"}; do f=$(realpath "$f"); mkdir -p "$root$(dirname "$f")"; cp -L "$f" "$root$f"; done; program=$(realpath "$1")
fi
shift
for d in ${disks[@]+"${disks[@]}"}; do disk+=(-drive "file=$d,format=raw,if=virtio,cache=writeback"); done
{ printf 'set --'; printf ' %q' "$program" "$@"; echo; } >"$root/etc/command"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t cgroup2 cgroup2 /sys/fs/cgroup
for ko in /mod/*.ko; do insmod "$ko" || echo "insmod $ko failed"; done
ip link set lo up
. /etc/command
if [ -e /etc/disk-root ]; then
  mount -t ext4 /dev/vda /newroot
  for d in proc sys dev; do mkdir -p /newroot/$d; mount --rbind /$d /newroot/$d; done
  mkdir -p /newroot/scratch /newroot/run; mount -t tmpfs -o size=80% tmpfs /newroot/scratch; mount -t tmpfs tmpfs /newroot/run
  cd /newroot; mount --move . /; chroot . "$@"
else
  mount -t tmpfs -o size=80% tmpfs /scratch; mount -t tmpfs tmpfs /run
  "$@"
fi
echo "vm-exit-status $?"
poweroff -f
INIT
chmod +x "$root/init"; (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"
timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$mem" -nographic -no-reboot -net none ${disk[@]+"${disk[@]}"} \
  -kernel "$kernel/boot/vmlinuz-$version" -initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" </dev/null 2>&1 \
  | tr -d '\r' | tee "$work/log" | sed -u '1,/Booting from ROM/d' | grep -v --line-buffered '^vm-exit-status' || true
status=$(sed -n 's/.*vm-exit-status \([0-9]*\).*/\1/p' "$work/log" | tail -1)
[ -n "$status" ] || { echo "vm.sh: the program gave no status within $limit s" >&2; exit 124; }
exit "$status"
