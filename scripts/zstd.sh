#!/usr/bin/env bash
# Publishes an image with its layers compressed with zstd. See `scripts/zstd.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/zstd.sh [--insecure] IMAGE NAME

Pushes the engine's IMAGE to a registry as NAME, such as ghcr.io/you/kind:1.36.5-zstd, with layers that are compressed
with zstd, which is shorter than gzip. Docker 23, containerd 1.5, podman 3 and newer can
pull it (docs/build.md). It needs skopeo, zstd and jq.

  --insecure  the registry has no TLS
TEXT
}

say() { printf 'zstd: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

insecure=()
while [ $# -gt 0 ]; do
  case $1 in
    --insecure) insecure=(--dest-tls-verify=false) ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option $1; --help lists the options" ;;
    *) break ;;
  esac
  shift
done
[ $# = 2 ] || { usage >&2; exit 2; }
image=$1 name=$2
for program in skopeo zstd jq; do
  command -v "$program" >/dev/null || die "there is no $program: install it, for example with apt-get install $program"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/saved" "$work/out"
"${KIND_ENGINE:-docker}" save "$image" | tar -x -C "$work/saved"
saved() { jq -r "$1" "$work/saved/manifest.json"; }

# add FILE TYPE: adds a blob to what is pushed, and prints its descriptor.
add() {
  local digest
  digest=$(sha256sum "$1" | cut -d ' ' -f 1)
  jq -cn --arg type "$2" --arg digest "sha256:$digest" --argjson size "$(stat -c %s "$1")" '{mediaType: $type, digest: $digest, size: $size}'
  mv "$1" "$work/out/$digest"
}

# The window is as long as every decoder allows without being asked: the programs of Kubernetes have much in common, but
# each is larger than the usual window. Newer engines save layers as they store them, which may be compressed.
for layer in $(saved '.[0].Layers[]'); do
  gzip -dcf <"$work/saved/$layer" | zstd -q -T0 -9 --long=27 -o "$work/layer"
  add "$work/layer" application/vnd.oci.image.layer.v1.tar+zstd
done >"$work/layers"
config=$(add "$work/saved/$(saved '.[0].Config')" application/vnd.oci.image.config.v1+json)
jq -s --argjson config "$config" \
  '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: .}' "$work/layers" >"$work/out/manifest.json"
echo 'Directory Transport Version: 1.1' >"$work/out/version"
skopeo copy --quiet --preserve-digests ${insecure[@]+"${insecure[@]}"} "dir:$work/out" "docker://$name" || die "$name could not be pushed"
say "$name: $(jq -s 'map(.size) | add / 1e6 | round' "$work/layers") MB in $(wc -l <"$work/layers") layers"
