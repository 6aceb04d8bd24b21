# shellcheck shell=bash
# The engine that bakes and runs: Docker, or podman as root. Whatever these scripts ask of it is in Docker 20.10 to 29
# and in podman 4.3 and newer. Sourced by build.sh, run.sh and scripts/release.sh, never run.

# The oldest ones that a bake was seen on.
oldest_docker=20.10 oldest_podman=4.3

# find_engine: sets $docker to the engine's command, and $podman if it is podman's, which may be named docker as well.
find_engine() {
  docker=${KIND_ENGINE:-docker} podman=''
  [ -n "${KIND_ENGINE:-}" ] || command -v docker >/dev/null || ! command -v podman >/dev/null || docker=podman
  command -v "$docker" >/dev/null || {
    [ -z "${KIND_ENGINE:-}" ] || die "KIND_ENGINE=$KIND_ENGINE: there is no such command; name docker or podman, or leave it out"
    die "there is neither a docker nor a podman command. Install one, or use --debian on a Debian machine"
  }
  case $("$docker" --version 2>/dev/null) in
    podman*)
      podman=1
      # The package podman-docker's command says so in each call.
      [ "${docker##*/}" != docker ] || ! command -v podman >/dev/null || docker=podman
      ;;
  esac
  # Options that podman needs: for a node, for a container to bake in, and for an image.
  node_options=() bake_options=() build_options=() commit_options=() save_options=()
  [ -n "$podman" ] || return 0
  # On SIGTERM its build would leave behind what it has started; on SIGHUP it ends that first.
  kills=HUP
  # Its own limit, of 2048, would apply to all processes of a cluster together.
  node_options=(--pids-limit=-1 --http-proxy=false)
  # It sets variables that a commit would keep, and complains of a health check where there is no systemd.
  bake_options=("${node_options[@]}" --no-healthcheck --unsetenv container --unsetenv TERM)
  # Its own format has no health check.
  build_options=(--format docker --http-proxy=false) commit_options=(--format docker --quiet) save_options=(--quiet)
}

# check_engine: sets $arch to the engine's architecture, and refuses an engine that cannot bake.
check_engine() {
  local os='' version parts security
  if [ -n "$podman" ]; then
    version=$("$docker" --version 2>/dev/null)
    refuse_older podman "${version##* }" "$oldest_podman"
    ask_engine podman info --format '{{.Host.Arch}} {{.Host.Security.Rootless}}'
    read -r arch security <<<"$said"
    [ "$security" != true ] || die "podman is rootless here, but a node needs the machine's root: run this as root, or with sudo; on macOS and Windows: podman machine set --rootful"
  else
    ask_engine "Docker engine" version --format '{{.Server.Arch}} {{.Server.Os}} {{.Server.Version}} {{range .Server.Components}}{{.Name}},{{end}}'
    read -r arch os version parts <<<"$said"
    case $parts in *Podman*) die "the docker command talks to podman's service: set KIND_ENGINE=podman to use podman itself" ;; esac
    [ "$os" = linux ] || die "the engine runs ${os:-unknown} containers, but a node needs Linux containers: in Docker Desktop, choose Switch to Linux containers"
    refuse_older Docker "$version" "$oldest_docker"
    # From 25 on the Dockerfile's health check can run once a second until it succeeds. An older engine refuses to write
    # that into an image, but runs an image that has it.
    version=$(as_number "$version")
    [ "${version:-0}" -lt 25000 ] || commit_options=(--change "HEALTHCHECK --start-interval=1s $(sed -n 's/^HEALTHCHECK //p' "$here/Dockerfile")")
    ask_engine "Docker engine" info --format '{{.SecurityOptions}}'
    case $said in
      *name=rootless*) die "this Docker engine is rootless, but a node needs the machine's root: use an engine that runs as root (DOCKER_HOST or docker context chooses one)" ;;
      *name=userns*) die "this Docker engine maps containers' users (userns-remap), so files in the image would not belong to root: remove userns-remap from its configuration, or use another engine" ;;
    esac
  fi
  case $arch in amd64 | arm64) ;; *) die "the engine runs on $arch; only amd64 and arm64 are supported" ;; esac
}

# refuse_other_node: run.sh's container has a fixed name and fixed ports.
refuse_other_node() {
  ! "$docker" container inspect kind >/dev/null 2>&1 || die "a container named kind already exists; remove it with: $docker rm --force --volumes kind"
}

# ask_engine WHO ARGUMENT...: sets $said to what the engine's command prints.
ask_engine() {
  local who=$1
  shift
  said=$("$docker" "$@" 2>"$work/engine") || die "no $who answers: $(tail -n 1 "$work/engine")"
}

# refuse_older WHO VERSION OLDEST: a version that is no number may do.
refuse_older() {
  local have
  have=$(as_number "$2")
  [ -z "$have" ] || [ "$have" -ge "$(as_number "$3")" ] || die "$1 $2 is too old: $3 or newer is needed"
}

# as_number VERSION: prints a version as a number to compare with, and nothing for one of an engine that somebody has
# compiled, which is none.
as_number() {
  [[ ! $1 =~ ^v?([0-9]+)\.([0-9]+) ]] || echo $((10#${BASH_REMATCH[1]} * 1000 + 10#${BASH_REMATCH[2]}))
}
