# shellcheck shell=bash
# shellcheck disable=SC2034
# Shared by every script that works with Debian packages: logging, the cache, installing packages.
# Sourced, never run.

# Named in debian.sh, whose contents are part of every image's stamp: a new name would rebuild them all.
lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kind}
# On Debian a user's PATH has no sbin, where dockerd and iptables are.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
# The buildx plugin is not always installed, and these few recipes do not need it.
export DOCKER_BUILDKIT=0

log() { echo "debian: $*" >&2; }
die() { log "$*"; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need COMMAND:PACKAGE... installs each package whose command (or file) is missing.
need() {
  local pair missing=()
  for pair; do
    command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+=("${pair#*:}")
  done
  [ "${#missing[@]}" = 0 ] && return
  # apt-get update does not wait for another one (apt-get install does).
  mkdir -p "$cache"
  exec 7>"$cache/packages-lock"
  flock 7
  log "installing ${missing[*]}"
  install_packages "${missing[@]}"
  exec 7>&-
}

install_packages() {
  local output
  # An update is worth its time only if the package lists are missing or stale.
  apt install "$@" >/dev/null 2>&1 && return
  apt update >/dev/null || die "apt-get update failed: check this machine's apt sources"
  output=$(apt install "$@" 2>&1) \
    || { tail -n 20 <<<"$output" >&2; die "apt-get install $* failed; its output is above"; }
}

apt() {
  local verb=$1
  shift
  # Another script may be installing something, such as .ci/run's other rows (seconds).
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=600 "$verb" "$@" 7>&-
}

# timed WHAT COMMAND... logs the start of a long step, and how long it took.
timed() {
  local what=$1 start=$SECONDS
  shift
  log "$what..."
  "$@"
  log "$what: done in $((SECONDS - start)) s"
}

# stamp FILE... prints a short hash of the recipes' contents.
stamp() { cat "$@" | sha256sum | cut -c1-16; }

# made_of IMAGE RECIPE: succeeds if the image exists and was built from exactly this recipe.
made_of() {
  [ "$(docker image inspect --format '{{index .Config.Labels "kind-lab.recipe"}}' "$1" 2>/dev/null)" = "$2" ]
}

# build_image IMAGE DOCKERFILE CONTEXT [OPTION...]
build_image() {
  local image=$1 dockerfile=$3/$2 context=$3 output start=$SECONDS recipe
  shift 3
  recipe=$(stamp "$lab_dir/debian.sh" "$context"/*)
  made_of "$image" "$recipe" && return
  log "$image..."
  output=$(docker build --tag "$image" --file "$dockerfile" --label "kind-lab.recipe=$recipe" "$@" "$context" 2>&1) \
    || { tail -n 20 <<<"$output" >&2; die "building $image failed; the end of its output is above"; }
  log "$image: done in $((SECONDS - start)) s"
}

withholds_sys_resource() {
  local bounding
  bounding=$(sed -n 's/^CapBnd:\s*//p' /proc/self/status)
  (((0x$bounding >> 24 & 1) == 0))
}

# Sets $engine_flags to what dockerd needs to run --privileged containers on this host.
choose_engine_flags() {
  local runtime=$cache/engine/runc-without-sys-resource
  engine_flags=(--storage-driver overlay2)
  withholds_sys_resource || return 0
  log "this host withholds CAP_SYS_RESOURCE: containers will run without it"
  need jq:jq prlimit:util-linux
  # A copy, because the engine may outlive this checkout.
  mkdir -p "$cache/engine"
  install -m 755 "$lab_dir/runc-without-sys-resource" "$runtime"
  engine_flags+=(--add-runtime "lab=$runtime" --default-runtime lab)
}
