#!/usr/bin/env bash
# load.sh MACHINE DATA: loads the image on stdin into the data disk of a machine with the machine's own engine, which
# runs here, outside of the emulator, for that long. Then adds what checks.sh needs. cgroup2.sh runs this in namespaces
# of its own: mounts, processes, network.
set -euo pipefail
. "$(dirname "$0")/../../../scripts/debian/lib.sh"

here=$(dirname "$0")
machine=${1:?usage: load.sh MACHINE DATA} data=${2:?usage: load.sh MACHINE DATA}
root=$data.root
mkdir "$root"
mount -o loop,ro "$machine" "$root"
mount -o loop "$data" "$root/lab"
mount -t proc proc "$root/proc"
for each in dev sys; do mount --rbind "/$each" "$root/$each"; done
for each in run tmp; do mount -t tmpfs "$each" "$root/$each"; done
inside=(chroot "$root" env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin)

# It has nothing to do with networks, or with the engine of this machine.
"${inside[@]}" dockerd --bridge=none --iptables=false --ip6tables=false >"$data.log" 2>&1 &
engine=$!
for _ in $(seq 600); do
  ! "${inside[@]}" docker version >/dev/null 2>&1 || break
  [ -d "/proc/$engine" ] || break
  sleep 0.1
done
"${inside[@]}" docker load --quiet >/dev/null || { tail -n 20 "$data.log" >&2; die "the image could not be loaded; the end of the engine's log is above"; }
kill "$engine"
wait "$engine"
cp "$here/checks.sh" "$here/../../../wait-for-kind.sh" "$root/lab"
umount "$root/lab"
