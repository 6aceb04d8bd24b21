# shellcheck shell=bash
# Pulls the images of a Kubernetes release through the engine, as archives that are kept under $cache.
# Sourced by build.sh, never run.

: "${IMAGE_REGISTRY:=registry.k8s.io}"

# pull NAME TARGET: saves an image from the registry as an archive, and sets $digest to the registry's digest of it.
pull() {
  local name=$1 from=$IMAGE_REGISTRY/${1#registry.k8s.io/} archive quiet=''
  archive=$cache/images/$arch/$from.tar
  if [ ! -f "$archive" ] || [ ! -s "$archive.digest" ]; then
    [ -t 2 ] || quiet=1
    # Images that the user already had are kept.
    "$docker" image inspect "$from" >/dev/null 2>&1 || temporary_images+=("$from")
    "$docker" image inspect "$name" >/dev/null 2>&1 || temporary_images+=("$name")
    attend "$docker" pull ${quiet:+--quiet} --platform "linux/$arch" "$from" >&2 || die "$from cannot be pulled; the reason is above"
    "$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$from" | sed -n "s|^${from%:*}@||p" | head -n 1 >"$work/digest"
    [ "$from" = "$name" ] || "$docker" tag "$from" "$name"
    attend "$docker" save ${save_options[@]+"${save_options[@]}"} --output "$work/image.tar" "$name" || die "$name cannot be saved; the reason is above"
    keep "$work/image.tar" "$archive"
    keep "$work/digest" "$archive.digest"
  fi
  digest=$(cat "$archive.digest")
  put 644 "$archive" "$2"
}

# pull_images DIR NODE_IMAGE: pulls the images that the kubeadm in DIR runs its cluster from.
pull_images() {
  local directory=$1 node=$2 name names
  # Only kubeadm knows which images its version needs. It runs in a container, because this machine may not be Linux.
  # shellcheck disable=SC2016
  attend "$docker" run ${bake_options[@]+"${bake_options[@]}"} --rm --interactive --label "kind.build=$id" --entrypoint sh "$node" -c \
    'cat >/kubeadm && chmod +x /kubeadm && /kubeadm config images list --image-repository registry.k8s.io --kubernetes-version "$0"' \
    "$version" <"$directory/bin/kubeadm" >"$work/names" || die "kubeadm cannot list its images; the reason is above"
  names=$(cat "$work/names")
  rm -f "$directory/images/DIGESTS"
  lock
  for name in $names; do
    pull "$name" "$directory/images/$(tr -c '[:alnum:].\n' - <<<"${name#registry.k8s.io/}").tar"
    printf '%s@%s\n' "$name" "$digest" >>"$directory/images/DIGESTS"
  done
  unlock
  printf 'KUBERNETES_VERSION=%s\nARCH=%s\n' "$version" "$arch" >"$directory/bundle.env"
}
