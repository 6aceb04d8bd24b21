#!/usr/bin/env bash
# Bakes an image with Docker and a bootstrapped Kubernetes cluster inside. `./build.sh --help` tells the rest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
Usage: ./build.sh [--run] [--env NAME]... [--bundle DIR | --debian] IMAGE [NAME...]
       ./build.sh --bundle-only [--bundle DIR] [--debian] [--env NAME]...

Bakes IMAGE (name or name:tag) with a cluster inside, and gives it every further NAME.
  --run          start the image when it is baked, and show how long it took to be ready
  --env NAME     pass a variable of this environment on to images.sh and the hooks; may be repeated
  --bundle DIR   take everything from a bundle, and nothing from the network
  --bundle-only  make a bundle (in DIR, or in ./bundle) and no image
  --debian       take everything from Debian packages, an engine included; only crates.io is reached besides

Settings, from the environment:
  KUBERNETES_VERSION  such as 1.36 (its newest known patch) or v1.36.2; default the newest that is known
  DOCKER_IMAGE        where Docker's binaries come from: a tag of docker, or an image (default 29-dind)
  STATIC_IP           the node's address, in every start the same (default 172.99.99.1)
  KIND_SANS           more names for the API server's certificate, separated by commas
  KIND_IMAGES         the script that pulls images to bake in (default images.sh beside build.sh)
  KIND_HOOKS          the folder of before-cluster.sh and after-cluster.sh (default hooks beside build.sh)
Where things come from: KUBERNETES_URL, CNI_URL, CNI_VERSION, CRICTL_URL, CRICTL_VERSION, IMAGE_REGISTRY,
DEBIAN_IMAGE, DEBIAN_MIRROR, RUST_IMAGE, CRATES_MIRROR, KIND_INIT, KIND_CACHE, KIND_STALL; see the README.
TEXT
}

# shellcheck source=scripts/lib.sh
. "$here/scripts/lib.sh"
# shellcheck source=scripts/download.sh
. "$here/scripts/download.sh"
# shellcheck source=scripts/bundle.sh
. "$here/scripts/bundle.sh"
# shellcheck source=scripts/image.sh
. "$here/scripts/image.sh"

debian='' bundle='' bundle_only='' run='' names=()
pass=(--env "STATIC_IP=${STATIC_IP:-}" --env "KIND_SANS=${KIND_SANS:-}")
while [ $# -gt 0 ]; do
  case $1 in
    --debian) debian=1 ;;
    --bundle)
      [ -n "${2:-}" ] || die "--bundle needs a folder"
      bundle=$2
      shift
      ;;
    --bundle-only) bundle_only=1 ;;
    --run) run=1 ;;
    --env)
      [[ ${2:-} =~ ^[A-Za-z_][A-Za-z_0-9]*$ ]] || die "--env needs the name of a variable"
      [ -n "${!2+set}" ] || die "--env $2: that variable is not set, or not exported, here"
      export "${2?}"
      pass+=(--env "$2")
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    -*) die "there is no option $1; --help lists them" ;;
    *) names+=("$1") ;;
  esac
  shift
done
if [ -n "$bundle_only" ]; then
  [ -z "$run${names[*]:-}" ] || die "--bundle-only makes no image: leave --run and ${names[*]:-names} out"
elif [ ${#names[@]} = 0 ]; then
  usage >&2
  exit 2
fi
cache=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kind}
hooks=${KIND_HOOKS:-$here/hooks} images=${KIND_IMAGES:-$here/images.sh}
[ -z "${KIND_HOOKS:-}" ] || [ -d "$hooks" ] || die "KIND_HOOKS=$hooks is no folder"
[ -z "${KIND_IMAGES:-}" ] || [ -f "$images" ] || die "KIND_IMAGES=$images is no file"
[ -z "${MINIKUBE_VERSION:-}" ] || say "MINIKUBE_VERSION is not needed any more: kubeadm alone does what minikube did"

if [ -n "$debian" ]; then
  attend "$here/tests/lab/engine.sh"
  attend "$here/tests/lab/images.sh" trixie
  : "${DEBIAN_IMAGE:=kind-lab/debian:trixie}" "${DOCKER_IMAGE:=kind-lab/docker:trixie-dind}" "${RUST_IMAGE:=kind-lab/rust:1}"
fi
command -v docker >/dev/null || die "there is no docker command. Install Docker, or use --debian on a Debian machine"
arch=$(docker version --format '{{.Server.Arch}}' 2>"$work/engine") || die "no Docker engine answers: $(tail -n 1 "$work/engine")"
engine=1
case $arch in amd64 | arm64) ;; *) die "the engine runs on $arch; there are builds for amd64 and arm64 only" ;; esac
for name in ${names[@]+"${names[@]}"}; do
  # It fails for a name that is free, too.
  ! { docker image inspect "$name" 2>&1 >/dev/null || true; } | grep -q 'invalid reference' || die "$name is no name for an image: it takes lower-case letters, digits and .-_/ and a :tag"
done
choose_version
choose_images

inputs=$work/bundle
if [ -n "$bundle_only" ]; then
  bundle=${bundle:-bundle}
  bundle=${bundle%/}
  refuse_other_folder "$bundle"
  temporary_folder=$bundle.$id inputs=$bundle.$id
elif [ -n "$bundle" ]; then
  check_bundle "$bundle"
  inputs=$bundle
fi
# What fails fast comes first.
if [ ! -f "$inputs/bundle.env" ] && [ -z "$debian" ]; then
  begin "downloading Kubernetes $version"
  download_programs "$inputs"
fi
make_node "$inputs"
make_init "$inputs"
if [ ! -f "$inputs/bundle.env" ] && [ -n "$debian" ]; then
  begin "making a bundle of Debian's Kubernetes"
  attend "$here/tests/lab/kubernetes.sh" "$inputs"
  version=$(setting "$inputs" KUBERNETES_VERSION)
elif [ ! -f "$inputs/bundle.env" ]; then
  begin "pulling the images of Kubernetes $version from $IMAGE_REGISTRY"
  pull_images "$inputs" "$node"
fi
if [ -n "$bundle_only" ]; then
  complete_bundle "$inputs" "$node" "$init" "$bundle"
  exit
fi
bake "$inputs" "$node" "$init"
commit "${names[@]}"
docker rm --force --volumes "$container" >/dev/null
[ -z "$run" ] || "$here/run.sh" "${names[0]}"
