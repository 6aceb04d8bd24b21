#!/usr/bin/env bash
# Bakes an image with Docker and a bootstrapped Kubernetes cluster inside. `./build.sh --help` tells the rest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'TEXT'
Usage: ./build.sh (--debian | --bundle DIR) [--run] IMAGE [TAG...]

Bakes IMAGE (a name, or name:tag), and gives it every TAG besides.
  --debian      take everything from Debian packages, an engine included; only crates.io is reached besides
  --bundle DIR  take Kubernetes and its images from a bundle
  --run         start the image when it is baked, and show how long it took to be ready
  --env NAME    pass a variable of this environment on to images.sh and the hooks; may be repeated

Settings, from the environment:
  STATIC_IP      the node's address, in every start the same (default 172.99.99.1)
  KIND_SANS      more names for the API server's certificate, separated by commas
  KIND_IMAGES    the script that pulls images to bake in (default images.sh beside build.sh)
  KIND_HOOKS     the folder of before-cluster.sh and after-cluster.sh (default hooks beside build.sh)
  DOCKER_IMAGE   where Docker's binaries come from: an image, or a tag of docker (default 29-dind)
  DEBIAN_IMAGE   the node's userland (default debian:trixie-slim)
  RUST_IMAGE     the toolchain for the init (default rust:1-slim-trixie)
  KIND_INIT      a static kind binary to take instead of building one
TEXT
}

say() { printf 'build: %s\n' "$*" >&2; }
die() { printf 'build: error: %s\n' "$*" >&2; exit 1; }

debian='' bundle='' run='' names=() pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --debian) debian=1 ;;
    --bundle) bundle=${2:?--bundle needs a folder}; shift ;;
    --run) run=1 ;;
    --env) pass+=(-e "${2:?--env needs the name of a variable}"); shift ;;
    -h | --help) usage; exit 0 ;;
    -*) die "there is no option $1; --help lists them" ;;
    *) names+=("$1") ;;
  esac
  shift
done
[ ${#names[@]} -gt 0 ] || { usage >&2; exit 2; }
[ -n "$debian$bundle" ] || die "give --debian or --bundle DIR: downloading Kubernetes is not built yet"
image=${names[0]}
work=$(mktemp -d)
container=''
# Nothing is left behind, whichever step fails or is interrupted.
clean_up() {
  [ -z "$container" ] || docker rm --force --volumes "$container" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

if [ -n "$debian" ]; then
  "$here/tests/lab/engine.sh"
  "$here/tests/lab/images.sh" trixie
  bundle=${bundle:-$work/bundle}
  [ -d "$bundle" ] || "$here/tests/lab/kubernetes.sh" "$bundle"
  : "${DEBIAN_IMAGE:=kind-lab/debian:trixie}" "${DOCKER_IMAGE:=kind-lab/docker:trixie-dind}" "${RUST_IMAGE:=kind-lab/rust:1}"
fi
command -v docker >/dev/null || die "there is no docker command. Install Docker, or use --debian on a Debian machine"
docker version >/dev/null 2>"$work/engine" || die "no Docker engine answers: $(tail -n 1 "$work/engine")"
[ -f "$bundle/bundle.env" ] || die "$bundle is no bundle: it has no bundle.env"

docker_image=${DOCKER_IMAGE:-29-dind}
case $docker_image in *[:/]*) ;; *) docker_image=docker:$docker_image ;; esac
settings=(--build-arg "DOCKER_IMAGE=$docker_image")
[ -z "${DEBIAN_IMAGE:-}" ] || settings+=(--build-arg "DEBIAN_IMAGE=$DEBIAN_IMAGE")
[ -z "${RUST_IMAGE:-}" ] || settings+=(--build-arg "RUST_IMAGE=$RUST_IMAGE")

# Builds one stage of the Dockerfile, from a context on stdin; prints the image's id.
stage() {
  local began=$SECONDS
  docker build "${settings[@]}" --target "$1" --iidfile "$work/$1" - >"$work/$1.log" 2>&1 || {
    cat "$work/$1.log" >&2
    die "docker build of the $1 image failed; its output is above"
  }
  say "$1 image built in $((SECONDS - began)) s"
}

say "building the node's image (Docker from $docker_image)"
stage node <"$here/Dockerfile"
init=${KIND_INIT:-}
if [ -z "$init" ]; then
  say "building the init"
  cat /etc/ssl/certs/ca-certificates.crt >"$work/ca.crt" 2>/dev/null || : >"$work/ca.crt"
  tar -c -C "$here" Cargo.toml Cargo.lock src Dockerfile -C "$work" ca.crt | stage init
  container=$(docker create "$(cat "$work/init")")
  docker cp -q "$container:/kind" "$work/kind" 2>/dev/null || docker cp "$container:/kind" "$work/kind" >/dev/null
  docker rm "$container" >/dev/null
  container='' init=$work/kind
fi

say "baking $image from $bundle"
container=$(docker run --detach --init --privileged --entrypoint sleep "$(cat "$work/node")" infinity)
docker exec "$container" mkdir -p /hooks /var/lib/docker/bundle
docker cp "$init" "$container:/usr/local/bin/kind" >/dev/null
for hook in before-cluster.sh after-cluster.sh; do
  from=${KIND_HOOKS:-$here/hooks}/$hook
  [ ! -f "$from" ] || docker cp "$from" "$container:/hooks/$hook" >/dev/null
done
images=${KIND_IMAGES:-$here/images.sh}
[ ! -f "$images" ] || docker cp "$images" "$container:/images.sh" >/dev/null
# On the volume, which the commit leaves out.
docker cp "$bundle/." "$container:/var/lib/docker/bundle" >/dev/null
# Values reach hooks through exec: a commit would keep what run was given.
# In the background, because bash heeds a signal only between commands, or while it waits.
docker exec -e STATIC_IP="${STATIC_IP:-}" -e KIND_SANS="${KIND_SANS:-}" "${pass[@]}" "$container" \
  kind bake --bundle /var/lib/docker/bundle &
wait $! || die "the bake failed; why is said above"
began=$SECONDS
docker commit --change 'ENTRYPOINT ["/usr/local/bin/kind", "run"]' --change 'CMD []' "$container" "$image" >/dev/null
for tag in "${names[@]:1}"; do docker tag "$image" "$tag"; done
say "$image committed in $((SECONDS - began)) s: $(docker image inspect --format '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')"
docker rm --force --volumes "$container" >/dev/null
container=''
[ -z "$run" ] || "$here/run.sh" "$image"
