# shellcheck shell=bash
# Downloads the programs of a Kubernetes release and verifies their checksums.
# Sourced by build.sh, never run. Downloads are kept under $cache.

: "${KUBERNETES_URL:=https://dl.k8s.io/release}"
: "${CNI_URL:=https://github.com/containernetworking/plugins/releases/download}"
: "${CRICTL_URL:=https://github.com/kubernetes-sigs/cri-tools/releases/download}"
# A transfer slower than a kilobyte a second for this many seconds is restarted where it stopped.
: "${KIND_STALL:=20}"
tries=4

# choose_version: sets $version from KUBERNETES_VERSION, and the versions that go with it.
choose_version() {
  local wanted=${KUBERNETES_VERSION:-} row='' minor
  [ -n "$wanted" ] || wanted=$(awk '/^v/ { print $1; exit }' "$here/scripts/versions")
  wanted=${wanted#v}
  [[ $wanted =~ ^(1\.[0-9]+)(\.[0-9]+)?$ ]] || die "KUBERNETES_VERSION=$KUBERNETES_VERSION is not a version: use one such as 1.36 or v1.36.2"
  minor=${BASH_REMATCH[1]}
  row=$(grep "^v${minor//./\\.}\." "$here/scripts/versions") \
    || die "Kubernetes $wanted is not supported; supported versions: $(sed -n 's/^v\(1\.[0-9]*\)\..*/\1/p' "$here/scripts/versions" | tr '\n' ' ')"
  if [ "$wanted" = "$minor" ]; then version=${row% *}; else version=v$wanted; fi
  : "${CRICTL_VERSION:=${row#* }}" "${CNI_VERSION:=v1.9.0}"
}

progress=(--silent --show-error)
[ ! -t 2 ] || progress=(--progress-bar)

# transfer URL FILE: continues where an earlier transfer of FILE stopped.
transfer() {
  local url=$1 file=$2 try status code
  for ((try = 1; ; try++)); do
    status=0
    attend curl --fail --location --connect-timeout "$KIND_STALL" --speed-limit 1024 --speed-time "$KIND_STALL" \
      "${progress[@]}" --continue-at - --output "$file" --write-out '%{http_code}' "$url" >"$work/code" || status=$?
    code=$(cat "$work/code")
    case $status:$code in
      0:*) return ;;
      # Range not satisfiable: the file is already complete.
      22:416) [ ! -s "$file" ] || return 0 ;;
      22:408 | 22:429 | 22:5*) ;;
      22:404) die "$url does not exist: check the version, or the address if it is a mirror" ;;
      22:*) die "$url: the server answered $code" ;;
      # The server does not support ranges.
      33:*) rm -f "$file" ;;
      23:*) die "$file cannot be written: is the disk full? KIND_CACHE chooses another directory" ;;
      3:* | 35:* | 60:* | 77:*) die "$url cannot be fetched; the reason is above" ;;
    esac
    [ "$try" -lt "$tries" ] || die "$url: gave up after $tries tries; run the same command again to continue where it stopped"
    say "trying again: $url"
    attend sleep "$try"
  done
}

# download URL: downloads and verifies it, and sets $file to its path.
download() {
  local url=$1 sum try
  file=$cache/downloads/${url#*://}
  mkdir -p "${file%/*}"
  if [ -f "$file" ]; then
    ! is_whole "$file" || return 0
    say "$file is damaged: downloading it again"
    rm -f "$file"
  fi
  rm -f "$file.sha256"
  transfer "$url.sha256" "$file.sha256"
  sum=$(checksum_in "$file.sha256")
  [[ $sum =~ ^[0-9a-f]{64}$ ]] || die "$url.sha256 does not contain a SHA-256 checksum, but: $(head -c 60 "$file.sha256" | tr -dc '[:print:]')"
  for try in 1 2; do
    [ ! -t 2 ] || say "${url##*/}"
    transfer "$url" "$file.part"
    cp "$file.sha256" "$file.part.sha256"
    if is_whole "$file.part"; then
      rm "$file.part.sha256"
      mv "$file.part" "$file"
      return
    fi
    # The first part may have been left by a transfer of another file.
    [ "$try" = 2 ] || say "${url##*/} has the wrong checksum: downloading it again from the start"
    mv "$file.part" "$work/damaged"
  done
  die "$url is damaged: its checksum is $(sha256 "$work/damaged" | cut -d ' ' -f 1), but $url.sha256 says $sum"
}

checksum_in() { awk 'NR == 1 { print $1 }' "$1"; }

is_whole() { [ "$(sha256 "$1" | cut -d ' ' -f 1)" = "$(checksum_in "$1.sha256" 2>/dev/null)" ]; }

# put MODE FILE TARGET: hard-links a file from the cache, or copies it.
put() {
  chmod "$1" "$2"
  ln -f "$2" "$3" 2>/dev/null || cp "$2" "$3"
}

# Concurrent builds would write into each other's transfers. Not every system has flock.
lock() {
  command -v flock >/dev/null || return 0
  exec 9>"$cache/lock"
  flock --nonblock 9 || { say "waiting for another build's downloads" && attend flock 9; }
}

unlock() { exec 9>&-; }

# download_programs DIR: puts the programs of $version for $arch where a bundle has them.
download_programs() {
  local directory=$1 program
  command -v curl >/dev/null || die "there is no curl command: install it"
  mkdir -p "$directory"/{bin,cni,images} "$work/unpacked" "$cache"
  lock
  for program in kubeadm kubelet kubectl; do
    download "$KUBERNETES_URL/$version/bin/linux/$arch/$program"
    put 755 "$file" "$directory/bin/$program"
  done
  download "$CNI_URL/$CNI_VERSION/cni-plugins-linux-$arch-$CNI_VERSION.tgz"
  tar -xzf "$file" -C "$work/unpacked"
  download "$CRICTL_URL/$CRICTL_VERSION/crictl-$CRICTL_VERSION-linux-$arch.tar.gz"
  tar -xzf "$file" -C "$work/unpacked"
  for program in bridge host-local portmap loopback; do
    mv "$work/unpacked/$program" "$directory/cni/" || die "the CNI plugins $CNI_VERSION do not include $program"
  done
  mv "$work/unpacked/crictl" "$directory/bin/" || die "the archive of crictl $CRICTL_VERSION does not contain crictl"
  unlock
}
