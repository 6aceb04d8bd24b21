# shellcheck shell=bash
# Adds CRIU to a bundle: Debian's packages, whose checksums are in this checkout. Sourced by build.sh, never run.

# Where the packages come from: a mirror of Debian, and its archive of everything that mirrors have removed.
: "${CRIU_URL:=https://deb.debian.org/debian}"
: "${CRIU_ARCHIVE_URL:=https://snapshot.debian.org/file}"

# add_criu DIR: downloads the packages into a bundle. Without them an image works too, and starts more slowly.
add_criu() {
  local directory=$1/criu package sha256 sha1 path
  [ ! -d "$directory" ] || return 0
  grep -q "^$arch " "$here/scripts/criu-packages" || {
    say "there is no CRIU for $arch: starts will be cold"
    return 0
  }
  begin "adding CRIU"
  mkdir -p "$directory" "$cache/criu"
  while read -r package sha256 sha1 path; do
    [ "$package" = "$arch" ] || continue
    package=$cache/criu/$sha256.deb
    if ! has_checksum "$sha256" "$package"; then
      fetch_package "$sha256" "$CRIU_URL/$path" || fetch_package "$sha256" "$CRIU_ARCHIVE_URL/$sha1" || {
        say "CRIU cannot be downloaded from $CRIU_URL or $CRIU_ARCHIVE_URL (${path##*/}): starts will be cold"
        rm -rf "$directory"
        return 0
      }
    fi
    put 644 "$package" "$directory/${path##*/}"
  done <"$here/scripts/criu-packages"
}

# fetch_package SHA256 URL: downloads a package into the cache, if it has that checksum.
fetch_package() {
  attend curl --silent --fail --location --retry 3 --connect-timeout "$KIND_STALL" --speed-limit 1024 --speed-time "$KIND_STALL" \
    --output "$work/package" "$2" || return
  has_checksum "$1" "$work/package" || return
  keep "$work/package" "$cache/criu/$1.deb"
}

has_checksum() { [ -f "$2" ] && [ "$(sha256 "$2" | cut -d ' ' -f 1)" = "$1" ]; }
