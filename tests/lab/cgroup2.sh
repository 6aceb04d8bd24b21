#!/usr/bin/env bash
# cgroup2.sh [--restored] IMAGE: tries an image on a machine with cgroup v2, AppArmor and every capability: a Debian 13
# in an emulator, which needs none of these here, nor /dev/kvm, and is slow. What is tried is in cgroup2/checks.sh.
# Prints a line for each check, and ends with 0 if all of them passed. With --restored, a first start that does not
# restore the control plane is a failure too.
set -euo pipefail
. "$(dirname "$0")/../../scripts/debian/lib.sh"
log() { echo "cgroup2: $*" >&2; }

restored=''
[ "${1:-}" != --restored ] || { restored=$1; shift; }
[ $# = 1 ] || die "usage: cgroup2.sh [--restored] IMAGE"
image=$1
parts=$(cd "$(dirname "$0")/cgroup2" && pwd)
# For everything, in seconds of this machine. The emulator needs nine minutes of a CPU, which a busy machine may not give.
limit=${KIND_LAB_LIMIT:-2700}
[ "$(id -u)" = 0 ] || die "mounting disks needs root: sudo $0 $*"
docker image inspect "$image" >/dev/null || die "$image must be an image of the engine that answers here"
need qemu-system-x86_64:qemu-system-x86 mke2fs:e2fsprogs unshare:util-linux mmdebstrap:mmdebstrap \
  /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
mkdir -p "$cache/lab"
work=$(mktemp -d "$cache/lab/cgroup2.XXXXXX")
child=''

clean_up() {
  [ -z "$child" ] || { kill -KILL "$child"; wait "$child"; } 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

show_console() {
  [ ! -e "$work/console" ] || { log "the end of the console:"; tail -n 40 "$work/console" | tr -d '\r' >&2; }
}

# within COMMAND...: runs a program, and ends it when the time for everything is over.
within() {
  "$@" <&0 &
  child=$!
  while [ -d "/proc/$child" ]; do
    [ "$SECONDS" -lt "$limit" ] || { show_console; die "$limit s are over in the midst of $1 (KIND_LAB_LIMIT)"; }
    sleep 1
  done
  wait "$child" || { child=''; return 1; }
  child=''
}

# Mounts and processes of a program that runs apart end with it, however it ends.
apart() { within unshare --mount --pid --fork --kill-child "$@"; }

make_disk() { apart "$parts/disk.sh" "$work/machine"; }
load() { apart --net "$parts/load.sh" "$machine" "$work/data" < <(docker save "$image"); }

machine=$cache/lab/cgroup2-$(stamp "$parts/disk.sh")
if [ ! -e "$machine" ]; then
  timed "a disk with Debian 13" make_disk
  # The disk last: if it is there, the other two are.
  for part in .kernel .initrd ''; do mv "$work/machine$part" "$machine$part"; done
fi
truncate --size=16G "$work/data"
mke2fs -q -t ext4 "$work/data"
timed "loading $image" load

log "the machine starts: every second of its own takes many here"
# Westmere is the oldest CPU on which a control plane is restored. With icount, the machine's clock goes by what its CPUs
# have executed, a nanosecond an instruction: time limits in there, such as a restore's, hold as on a real machine,
# however slow the emulation is. The machine idles at the pace of this one.
cpu=(-accel "tcg,thread=single" -icount "shift=0" -cpu Westmere -smp 2 -m 4096)
options="root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.journald.forward_to_console=1"
options+=" systemd.setenv=IMAGE=$image systemd.setenv=RESTORED=$restored"
kernel=(-kernel "$machine.kernel" -initrd "$machine.initrd" -append "$options")
disks=(-drive "file=$machine,format=raw,if=virtio,snapshot=on" -drive "file=$work/data,format=raw,if=virtio,cache=unsafe")
ports=(-serial "file:$work/console" -chardev "stdio,id=report,logfile=$work/report" -serial chardev:report)
within qemu-system-x86_64 "${cpu[@]}" "${kernel[@]}" "${disks[@]}" "${ports[@]}" -nodefaults -display none -no-reboot \
  </dev/null || { show_console; die "the emulator failed"; }
[ "$(tail -n 1 "$work/report" | tr -d '\r')" = "every check passed" ] || { show_console; die "not every check passed"; }
log "passed after $SECONDS s"
