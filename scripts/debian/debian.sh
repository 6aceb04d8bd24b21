#!/usr/bin/env bash
# Makes kind-lab/debian:SUITE, the stand-in for Docker Hub's debian:SUITE-slim, from Debian's own
# packages: the lab has no registry. It also holds the libraries that Debian's Docker and containerd
# are linked to, so that copying their binaries is enough, as it is with the official static ones.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

suite=${1:?usage: debian.sh SUITE (bookworm, trixie or sid)}
image=kind-lab/debian:$suite
mirror=${KIND_LAB_MIRROR:-http://deb.debian.org/debian}
recipe=$(stamp "$lab_dir/debian.sh")
tarball=$cache/lab/debian-$suite-$recipe.tar

bootstrap() {
  local setting settings=()
  # Behind a proxy, or on a frozen mirror, the image's apt needs what this machine's apt was told.
  while IFS= read -r setting; do
    settings+=(--aptopt="$setting")
  done < <(apt-config dump | grep -E '^Acquire::(https?::Proxy |Check-)')
  trap 'rm -f "$tarball.$$"' EXIT
  # Sid's lists of a mirror that lags are past their date: nothing here needs fresh ones.
  # Left out is what slim images leave out too, but not the licenses; what apt keeps would double every layer that
  # uses it.
  # shellcheck disable=SC2016
  as_root mmdebstrap --quiet --mode=root --variant=minbase \
    --include=ca-certificates,libcap2,libseccomp2,libsystemd0 \
    "${settings[@]}" --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Dir::Cache::pkgcache ""' --aptopt='Dir::Cache::srcpkgcache ""' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/*' \
    --customize-hook='echo "DPkg::Post-Invoke { \"rm -f /var/cache/apt/archives/*.deb\"; };" >"$1"/etc/apt/apt.conf.d/clean' \
    "$suite" - "$mirror" >"$tarball.$$" \
    || die "mmdebstrap $suite failed: see above, and check that $mirror answers (KIND_LAB_MIRROR names another)"
  mv "$tarball.$$" "$tarball"
}

"$lab_dir/engine.sh"
made_of "$image" "$recipe" && exit
mkdir -p "$cache/lab"
# Another script may be making the same image.
exec 9>"$cache/lab/lock-$suite"
flock 9
made_of "$image" "$recipe" && exit
need mmdebstrap:mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
[ -e "$tarball" ] || timed "Debian $suite" bootstrap
docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'CMD ["bash"]' --change "LABEL kind-lab.recipe=$recipe" "$tarball" "$image" >/dev/null
log "$image is there"
