#!/usr/bin/env bash
# Bakes an image with Docker and a bootstrapped Kubernetes cluster inside. See `./build.sh --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
Usage: ./build.sh [--run] [--env NAME]... [--bundle DIR | --debian] IMAGE [NAME...]
       ./build.sh --bundle-only [--bundle DIR] [--debian] [--env NAME]...
       ./build.sh --print-version [--bundle DIR | --debian]
       ./build.sh --print-contents [--bundle DIR | --debian]

Bakes IMAGE (name or name:tag) with a cluster inside, and tags it with each further NAME.
  --run          start the image once it is baked, and show how long it takes to become ready
  --env NAME     pass an environment variable on to images.sh and the hooks; may be repeated
  --bundle DIR   build from a bundle, without using the network
  --bundle-only  make a bundle (in DIR, or in ./bundle) instead of an image, or complete the one in DIR
  --debian       build from Debian packages, the Docker engine included; otherwise only crates.io is used
  --print-version  print the version of Kubernetes that would be baked, such as v1.36.5, and build nothing
  --print-contents  print the base images' digests and Debian's packages of an image that would be baked now

Environment variables:
  KUBERNETES_VERSION  such as 1.36 (its newest patch release) or v1.36.5 (default the newest release)
  KIND_ENGINE         the engine's command: docker, or podman as root (default docker, or podman if there is no docker)
  DOCKER_IMAGE        where Docker's binaries come from: a tag of docker, or an image (default 29-dind)
  STATIC_IP           the node's address, the same at every start (default 172.99.99.1)
  KIND_SANS           extra names for the API server's certificate, separated by commas
  KIND_KUBEADM        a file in kubeadm's configuration language, merged into the cluster's own
  KIND_CNI            none: no network for pods, for one that hooks/after-cluster.sh installs (default bridge)
  KIND_NETWORK_POLICY 1: NetworkPolicies are enforced, by kube-router's firewall; or an image of it
  KIND_NODE_LABELS    the node's labels, such as tier=ci,disk=ssd
  KIND_NODE_TAINTS    the node's taints, such as dedicated=ci:NoSchedule
  KIND_KEEP_ARCHIVES  1: docker save and docker push can send Kubernetes' own images, too
  KIND_IMAGES         the script that pulls the images to bake in (default images.sh next to build.sh)
  KIND_HOOKS          the directory of before-cluster.sh and after-cluster.sh (default hooks next to build.sh)
Sources and mirrors: KUBERNETES_URL, CNI_URL, CNI_VERSION, IMAGE_REGISTRY, DEBIAN_IMAGE, DEBIAN_MIRROR, CRIU_URL,
CRIU_ARCHIVE_URL, RUST_IMAGE, CRATES_MIRROR, KIND_INIT, KIND_CACHE, KIND_STALL;
see docs/settings.md.
TEXT
}

# shellcheck source=scripts/lib.sh
. "$here/scripts/lib.sh"
# shellcheck source=scripts/settings.sh
. "$here/scripts/settings.sh"
# shellcheck source=scripts/engine.sh
. "$here/scripts/engine.sh"
# shellcheck source=scripts/version.sh
. "$here/scripts/version.sh"
# shellcheck source=scripts/download.sh
. "$here/scripts/download.sh"
# shellcheck source=scripts/pull.sh
. "$here/scripts/pull.sh"
# shellcheck source=scripts/criu.sh
. "$here/scripts/criu.sh"
# shellcheck source=scripts/bundle.sh
. "$here/scripts/bundle.sh"
# shellcheck source=scripts/contents.sh
. "$here/scripts/contents.sh"
# shellcheck source=scripts/image.sh
. "$here/scripts/image.sh"

debian='' bundle='' bundle_only='' print_version='' print_contents='' run='' names=()
pass=()
for name in STATIC_IP KIND_SANS KIND_NODE_LABELS KIND_NODE_TAINTS KIND_CNI KIND_NETWORK_POLICY KIND_KEEP_ARCHIVES; do pass+=(--env "$name=${!name:-}"); done
while [ $# -gt 0 ]; do
  case $1 in
    --debian) debian=1 ;;
    --bundle)
      [ -n "${2:-}" ] || die "--bundle needs a directory"
      bundle=$2
      shift
      ;;
    --bundle-only) bundle_only=1 ;;
    --print-version) print_version=1 ;;
    --print-contents) print_contents=1 ;;
    --run) run=1 ;;
    --env)
      [[ ${2:-} =~ ^[A-Za-z_][A-Za-z_0-9]*$ ]] || die "--env needs the name of a variable"
      [ -n "${!2+set}" ] || die "--env $2: that variable is not set, or not exported, here"
      export "${2?}"
      pass+=(--env "$2")
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option $1; --help lists the options" ;;
    *) names+=("$1") ;;
  esac
  shift
done
if [ -n "$print_version" ]; then
  [ -z "$run$bundle_only${names[*]:-}" ] || die "--print-version builds nothing: leave out everything but --bundle, --debian and --env"
  choose_version
  printf '%s\n' "$version"
  exit
elif [ -n "$bundle_only" ]; then
  [ -z "$run${names[*]:-}" ] || die "--bundle-only makes no image: leave out --run and ${names[*]:-names}"
elif [ ${#names[@]}${print_contents:-0} = 00 ]; then
  usage >&2
  exit 2
fi
check_settings
choose_version
announce_version

if [ -n "$debian" ]; then
  attend "$here/scripts/debian/engine.sh"
  : "${DEBIAN_IMAGE:=kind-lab/debian:trixie}" "${DOCKER_IMAGE:=kind-lab/docker:trixie-dind}" "${RUST_IMAGE:=kind-lab/rust:1}"
fi
find_engine
check_engine
[ -z "$run" ] || refuse_other_node
engine=1
for name in ${names[@]+"${names[@]}"}; do
  # This fails for a name that is not taken, too: only the message tells the two apart.
  ! { "$docker" image inspect "$name" 2>&1 >/dev/null || true; } | grep -qE 'invalid reference|must be lowercase' || die "$name is not a valid image name: use lower-case letters, digits and .-_/ and a :tag"
done
choose_images

inputs=$work/bundle
if [ -n "$bundle_only" ]; then
  bundle=${bundle:-bundle}
  bundle=${bundle%/}
  refuse_other_directory "$bundle"
  temporary_directory=$bundle.$id inputs=$bundle.$id
  ! is_partial "$bundle" || { check_bundle "$bundle" && cp -R "$bundle" "$inputs" && rm "$inputs/SHA256SUMS"; }
elif [ -n "$bundle" ]; then
  check_bundle "$bundle"
  inputs=$bundle
fi
if [ -n "$debian" ]; then
  # It takes longest, and waits for the network where the rest needs the processor, and the other way round.
  [ -f "$inputs/bundle.env" ] || [ -n "$print_contents" ] || beside "$here/scripts/debian/kubernetes.sh" "$inputs"
  attend "$here/scripts/debian/images.sh" trixie
fi
if [ -n "$print_contents" ]; then
  print_contents "$inputs"
  exit
fi
# Whatever fails fast comes first.
if [ ! -f "$inputs/bundle.env" ] && [ -z "$debian" ]; then
  begin "downloading Kubernetes $version"
  download_programs "$inputs"
fi
make_node "$inputs"
make_init "$inputs"
if [ -n "$other" ]; then
  begin "making a bundle from Debian's Kubernetes"
  join_beside || die "the bundle cannot be made; the reason is above"
  version=$(setting "$inputs" KUBERNETES_VERSION)
elif [ ! -f "$inputs/bundle.env" ]; then
  begin "pulling the images of Kubernetes $version from $IMAGE_REGISTRY"
  pull_images "$inputs" "$node"
fi
[ -f "$inputs/SHA256SUMS" ] || add_criu "$inputs"
if [ -n "$bundle_only" ]; then
  complete_bundle "$inputs" "$node" "$init" "$bundle"
  exit
fi
bake "$inputs" "$node" "$init"
commit "${names[@]}"
"$docker" rm --force --volumes "$container" >/dev/null
[ -z "$run" ] || "$here/run.sh" "${names[0]}"
