# shellcheck shell=bash
# The bundle: one directory with everything that a build needs, for machines without a network.
# Sourced by build.sh, never run.

# seal DIR: writes the checksums of a bundle's files, so that a damaged copy is noticed.
seal() {
  local name
  for name in $(list "$1"); do
    (cd "$1" && sha256 "$name")
  done >"$1/SHA256SUMS.new"
  mv "$1/SHA256SUMS.new" "$1/SHA256SUMS"
}

# list DIR: prints a bundle's files. Their names come from kubeadm and from us, and have no spaces.
list() { (cd "$1" && find . -type f ! -name 'SHA256SUMS*' ! -name '.*' | sed 's|^\./||' | LC_ALL=C sort); }

# check_bundle DIR: fails if it is damaged or for another architecture.
check_bundle() {
  local directory=$1 damaged name have
  [ -f "$directory/SHA256SUMS" ] || die "$directory has no SHA256SUMS: recreate it, or, if you assembled it yourself: cd $directory && find . -type f ! -name SHA256SUMS | cut -c 3- | xargs sha256sum >SHA256SUMS"
  begin "checking $directory"
  (cd "$directory" && sha256 --check SHA256SUMS) >"$work/checked" 2>/dev/null || true
  damaged=$(sed -n 's/: FAILED.*//p' "$work/checked" | tr '\n' ' ')
  for name in $damaged; do
    [ -f "$directory/$name" ] || die "the bundle $directory is missing $name: copy the bundle again, or recreate it"
  done
  [ -z "$damaged" ] || die "the bundle $directory is damaged; these files have changed: ${damaged% }. Copy it again, or recreate it"
  for name in $(list "$directory"); do
    grep -q "^$name: OK\$" "$work/checked" || die "$name is in the bundle $directory, but not in its SHA256SUMS: add it with: cd $directory && sha256sum $name >>SHA256SUMS"
  done
  have=$(setting "$directory" ARCH)
  [ "$have" = "$arch" ] || die "the bundle $directory is for $have, but the engine runs on $arch: make the bundle on a machine like this one"
}

# refuse_other_directory DIR: only a bundle, or an empty directory, may be replaced by a bundle.
refuse_other_directory() {
  [ ! -e "$1" ] || [ -f "$1/bundle.env" ] || [ -z "$(ls -A "$1" 2>&1)" ] \
    || die "$1 is neither a bundle nor empty: choose a directory that is empty or does not exist yet"
}

# is_partial DIR: whether it holds a Kubernetes, but not what `complete_bundle` adds, such as one that was compiled.
is_partial() { [ -f "$1/bundle.env" ] && [ "$(setting "$1" COMPLETE)" != 1 ]; }

# setting DIR NAME: prints a line's value from bundle.env.
setting() { sed -n "s/^$2=//p" "$1/bundle.env"; }

# complete_bundle DIR NODE_IMAGE INIT TARGET: adds to DIR what is not Kubernetes, so that no network is needed, and moves it
# to TARGET: the node's image, the init, and every image that images.sh and the hooks pulled, taken from a throw-away bake.
complete_bundle() {
  local directory=$1 node=$2 init=$3 target=$4
  rm -f "$directory/.lab-recipe"
  cp "$init" "$directory/kind"
  attend "$docker" save ${save_options[@]+"${save_options[@]}"} --output "$directory/node.tar" "$node" || die "the node's image cannot be saved"
  chmod 644 "$directory/node.tar"
  bake "$directory" "$node" "$init" --save-images /var/lib/docker/pulled.tar
  "$docker" cp "$container:/var/lib/docker/pulled.tar" "$directory/images/pulled.tar" >/dev/null 2>&1 \
    || say "images.sh and the hooks pulled no images"
  # A new file, because the old one may be a hard link into a cache.
  { cat "$directory/bundle.env" && echo COMPLETE=1; } >"$work/bundle.env"
  mv "$work/bundle.env" "$directory/bundle.env"
  begin "writing checksums"
  seal "$directory"
  rm -rf "$target"
  mv "$directory" "$target"
  say "the bundle is $target ($(du -sh "$target" | cut -f 1)): ./build.sh --bundle $target IMAGE needs nothing else"
}
