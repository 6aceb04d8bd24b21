# shellcheck shell=bash
# Downloads the programs of a Kubernetes release and verifies their checksums.
# Sourced by build.sh, never run. Downloads are kept under $cache.

: "${CNI_URL:=https://github.com/containernetworking/plugins/releases/download}" "${CNI_VERSION:=v1.9.1}"
# A transfer slower than a kilobyte a second for this many seconds is restarted where it stopped.
: "${KIND_STALL:=20}"
tries=4

progress=(--silent --show-error)
[ ! -t 2 ] || progress=(--progress-bar)

need_curl() { command -v curl >/dev/null || die "there is no curl command: install it"; }

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
  local url=$1 sum try whose=scripts/checksums
  file=$cache/downloads/${url#*://}
  mkdir -p "${file%/*}"
  sum=$(listed_checksum "$url")
  [ -z "$sum" ] || printf '%s\n' "$sum" >"$file.sha256"
  if [ -f "$file" ]; then
    ! is_whole "$file" || return 0
    say "$file is damaged: downloading it again"
    rm -f "$file"
  fi
  if [ -z "$sum" ]; then
    whose=$url.sha256
    rm -f "$file.sha256"
    transfer "$url.sha256" "$file.sha256"
    sum=$(checksum_in "$file.sha256")
    [[ $sum =~ ^[0-9a-f]{64}$ ]] || die "$url.sha256 does not contain a SHA-256 checksum, but: $(head -c 60 "$file.sha256" | tr -dc '[:print:]')"
  fi
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
  die "$url is damaged: its checksum is $(sha256 "$work/damaged" | cut -d ' ' -f 1), but $whose says $sum"
}

# listed_checksum URL: prints the checksum that this checkout has for it, if any.
listed_checksum() {
  awk -v url="$1" '!/^#/ && substr(url, length(url) - length($2)) == "/" $2 { print $1 }' "$here/scripts/checksums"
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
  need_curl
  mkdir -p "$directory"/{bin,cni,images} "$work/unpacked" "$cache"
  lock
  for program in kubeadm kubelet kubectl; do
    download "$KUBERNETES_URL/$version/bin/linux/$arch/$program"
    put 755 "$file" "$directory/bin/$program"
  done
  download "$CNI_URL/$CNI_VERSION/cni-plugins-linux-$arch-$CNI_VERSION.tgz"
  tar -xzf "$file" -C "$work/unpacked"
  for program in bridge host-local portmap loopback; do
    mv "$work/unpacked/$program" "$directory/cni/" || die "the CNI plugins $CNI_VERSION do not include $program"
  done
  unlock
}
