# shellcheck shell=bash
# The bundle: one folder with all that a build needs, for machines without a network.
# Sourced by build.sh and the lab, never run.

# seal DIR: writes down what is in a bundle, so that a damaged copy of it is noticed.
seal() {
  local name
  for name in $(list "$1"); do
    (cd "$1" && sha256 "$name")
  done >"$1/SHA256SUMS.new"
  mv "$1/SHA256SUMS.new" "$1/SHA256SUMS"
}

# The files of a bundle, whose names have no spaces: they come from kubeadm and from us.
list() { (cd "$1" && find . -type f ! -name 'SHA256SUMS*' ! -name '.*' | sed 's|^\./||' | LC_ALL=C sort); }

# check_bundle DIR: refuses what is no bundle, is damaged, or is for something else.
check_bundle() {
  local directory=$1 damaged name have
  [ -f "$directory/bundle.env" ] || die "$directory is no bundle, as it has no bundle.env: ./build.sh --bundle-only makes one"
  [ -f "$directory/SHA256SUMS" ] || die "$directory has no SHA256SUMS: make it anew, or, if you put it together yourself: cd $directory && find . -type f ! -name SHA256SUMS | cut -c 3- | xargs sha256sum >SHA256SUMS"
  begin "checking $directory"
  (cd "$directory" && sha256 --check SHA256SUMS) >"$work/checked" 2>/dev/null || true
  damaged=$(sed -n 's/: FAILED.*//p' "$work/checked" | tr '\n' ' ')
  for name in $damaged; do
    [ -f "$directory/$name" ] || die "the bundle $directory lacks $name: copy it again, or make it anew"
  done
  [ -z "$damaged" ] || die "the bundle $directory is damaged, these files are not what they were: ${damaged% }. Copy it again, or make it anew"
  for name in $(list "$directory"); do
    grep -q "^$name: OK\$" "$work/checked" || die "$name is in the bundle $directory, but not in its SHA256SUMS: add it with: cd $directory && sha256sum $name >>SHA256SUMS"
  done
  have=$(setting "$directory" ARCH)
  [ "$have" = "$arch" ] || die "the bundle $directory is for $have, and the engine runs on $arch: make it on a machine like this one"
  have=$(setting "$directory" KUBERNETES_VERSION)
  [ -z "${KUBERNETES_VERSION:-}" ] || [ "$have" = "$version" ] \
    || die "the bundle $directory holds Kubernetes $have, and KUBERNETES_VERSION asks for $version"
  version=$have
}

# refuse_other_folder DIR: nothing but a bundle is replaced by a bundle.
refuse_other_folder() {
  [ ! -e "$1" ] || [ -f "$1/bundle.env" ] || [ -z "$(ls -A "$1" 2>&1)" ] \
    || die "$1 has something else in it: name a folder that is empty or not there yet"
}

setting() { sed -n "s/^$2=//p" "$1/bundle.env"; }

# complete_bundle DIR NODE_IMAGE INIT TARGET: makes TARGET of DIR, and adds what is not Kubernetes, so that no network is needed: the
# node's image, the init, and, from a bake that is thrown away, every image that images.sh and the hooks got.
complete_bundle() {
  local directory=$1 node=$2 init=$3 target=$4
  rm -f "$directory/.lab-recipe"
  cp "$init" "$directory/kind"
  attend docker save --output "$directory/node.tar" "$node" || die "the node's image cannot be saved"
  chmod 644 "$directory/node.tar"
  bake "$directory" "$node" "$init" --save-images /var/lib/docker/pulled.tar
  docker cp "$container:/var/lib/docker/pulled.tar" "$directory/images/pulled.tar" >/dev/null 2>&1 \
    || say "images.sh and the hooks have pulled nothing"
  # Another name for it may be in a cache.
  { cat "$directory/bundle.env" && echo COMPLETE=1; } >"$work/bundle.env"
  mv "$work/bundle.env" "$directory/bundle.env"
  begin "writing checksums"
  seal "$directory"
  rm -rf "$target"
  mv "$directory" "$target"
  say "the bundle is $target ($(du -sh "$target" | cut -f 1)): ./build.sh --bundle $target IMAGE needs nothing else"
}
