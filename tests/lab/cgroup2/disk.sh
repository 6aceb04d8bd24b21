#!/usr/bin/env bash
# disk.sh DISK: makes the disk of a Debian 13 that has cgroup v2, AppArmor and Docker, and beside it DISK.kernel and
# DISK.initrd. At its start it runs /lab/checks.sh from its second disk, with the second serial port as its output,
# and turns itself off. cgroup2.sh runs this in a mount namespace of its own.
set -euo pipefail
. "$(dirname "$0")/../../../scripts/debian/lib.sh"

disk=${1:?usage: disk.sh DISK}
root=$disk.root
settings=()
# Behind a proxy, or on a frozen mirror, apt needs what this machine's apt was told.
while IFS= read -r setting; do
  settings+=(--aptopt="$setting")
done < <(apt-config dump | grep -E '^Acquire::(https?::Proxy |Check-)')

# shellcheck disable=SC2016
mmdebstrap --quiet --mode=root --variant=minbase "${settings[@]}" \
  --include=linux-image-cloud-amd64,systemd-sysv,udev,dbus,apparmor,iptables,docker.io,docker-cli \
  --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"' \
  --essential-hook='echo MODULES=list >"$1/etc/initramfs-tools/conf.d/small"' \
  --essential-hook='printf "%s\n" virtio_pci virtio_blk ext4 >"$1/usr/share/initramfs-tools/modules.d/disk"' \
  --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/etc/systemd/system/timers.target.wants' \
  trixie "$root" "${KIND_LAB_MIRROR:-http://deb.debian.org/debian}"

mkdir -p "$root/lab" "$root/etc/docker"
printf '%s\n' '/dev/vda / ext4 defaults 0 0' '/dev/vdb /lab ext4 defaults 0 0' >"$root/etc/fstab"
echo '{ "data-root": "/lab/docker" }' >"$root/etc/docker/daemon.json"
cat >"$root/etc/systemd/system/checks.service" <<'TEXT'
[Unit]
Wants=docker.service
After=docker.service
RequiresMountsFor=/lab
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
ExecStart=/lab/checks.sh
StandardOutput=file:/dev/ttyS1
[Install]
WantedBy=multi-user.target
TEXT
systemctl --quiet --root="$root" enable checks.service

cp "$root"/boot/vmlinuz-* "$disk.kernel"
cp "$root"/boot/initrd.img-* "$disk.initrd"
truncate --size=4G "$disk.new"
mke2fs -q -t ext4 -d "$root" "$disk.new"
# Last: a disk that is there is whole.
mv "$disk.new" "$disk"
