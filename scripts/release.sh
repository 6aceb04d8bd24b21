#!/usr/bin/env bash
# Bakes and publishes images of every supported Kubernetes. See `scripts/release.sh --help`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

usage() {
  cat <<'TEXT'
Usage: scripts/release.sh [OPTION]... REPOSITORY [MINOR]...

Bakes an image of each MINOR (default: every one that scripts/versions lists but --debian's) for this machine's
architecture, and pushes it to REPOSITORY, such as ghcr.io/you/kind. Log in first: docker login REGISTRY.

  REPOSITORY:1.36.5-COMMIT-amd64            what this machine has baked last
  REPOSITORY:1.36.5-COMMIT-CONTENTS-amd64   the same under a name that stays: CONTENTS stands for the base images
                                            and Debian's packages that went into it
  REPOSITORY:1.36.5-20261130                a list of what each architecture has baked last from the same commit, by
  REPOSITORY:1.36.5, :1.36, :latest-1.36    digest, with the day on which it was made; the others are the newest
  REPOSITORY:latest                         such list, and the last is that of the newest minor

The lists are made once each architecture has been pushed: run the same command, on the same commit, on a machine of
each. What was pushed already is not baked again, so a release that was interrupted goes on where it stopped. Run again
on a later day, it bakes anew if a base image or a package has changed since, and does nothing otherwise.

  --architectures LIST   what a list must contain (default amd64,arm64)
  --zstd                 also push REPOSITORY:1.36.5-zstd-amd64, for engines that know zstd; see scripts/zstd.sh --help
  --sboms DIR            put the list of what is in each baked image here, as kind-1.36.5-amd64.cdx.json (CycloneDX)
  --insecure             the registry has no TLS; not needed on this machine's loopback
  --bundle DIR, --debian, --env NAME   passed on to build.sh
  --dirty                publish a checkout with changes that are not committed, as COMMIT-dirty
TEXT
}

say() { printf 'release: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

architectures=amd64,arm64 dirty='' zstd='' sboms='' insecure=() build=() positional=()
while [ $# -gt 0 ]; do
  case $1 in
    --architectures | --sboms | --bundle | --env)
      [ -n "${2:-}" ] || die "$1 needs a value"
      case $1 in
        --architectures) architectures=$2 ;;
        --sboms) sboms=$2 ;;
        *) build+=("$1" "$2") ;;
      esac
      shift
      ;;
    --debian) build+=("$1") ;;
    --dirty) dirty=1 ;;
    --zstd) zstd=1 ;;
    --insecure) insecure=(--insecure) ;;
    -h | --help) usage; exit 0 ;;
    -*) die "unknown option $1; --help lists the options" ;;
    *) positional+=("$1") ;;
  esac
  shift
done
set -- ${positional[@]+"${positional[@]}"}
[ $# -ge 1 ] || { usage >&2; exit 2; }
repository=$1
shift
case ${repository##*/} in *:*) die "$repository has a tag: name the repository alone, such as ghcr.io/you/kind" ;; esac
case $repository in
  */*) ;;
  *) die "$repository names no registry or user: use a name such as docker.io/you/kind or ghcr.io/you/kind" ;;
esac

case $repository in localhost:* | 127.*) insecure=(--insecure) ;; esac

# shellcheck source=scripts/version.sh
. "$here/scripts/version.sh"
newest=$(supported | head -n 1)
if [ $# = 0 ]; then
  mapfile -t minors < <(supported)
else
  minors=("$@")
fi

commit=$(git -C "$here" rev-parse --short=12 HEAD 2>/dev/null) || die "$here is not a git checkout, and the images' names contain its commit"
if [ -n "$(git -C "$here" status --porcelain)" ]; then
  [ -n "$dirty" ] || die "the checkout has changes that are not committed: commit them, or add --dirty"
  commit=$commit-dirty
fi
# shellcheck source=scripts/engine.sh
. "$here/scripts/engine.sh"
find_engine
[ -z "$podman" ] || die "publishing needs Docker: podman makes lists of images with other commands"
arch=$(docker version --format '{{.Server.Arch}}') || die "no Docker engine answers; the reason is above"
case ",$architectures," in
  *,"$arch",*) ;;
  *) die "this machine's engine is $arch, which is not one of --architectures $architectures" ;;
esac

manifest() {
  local verb=$1
  shift
  docker manifest "$verb" ${insecure[@]+"${insecure[@]}"} "$@"
}

# published NAME: whether the registry has it. Only its own answer that it has not is a no.
published() {
  local said
  said=$(manifest inspect "$1" 2>&1 >/dev/null) && return
  case $said in
    *'no such manifest'* | *'manifest unknown'* | *'not found'*) return 1 ;;
    *) die "the registry refuses $1: $said" ;;
  esac
}

# digest_of NAME: prints the digest under which the registry has this image.
digest_of() {
  local digest
  digest=$(manifest inspect --verbose "$1" | sed -n 's/.*"digest": "\(sha256:[0-9a-f]*\)".*/\1/p' | head -n 1)
  [ -n "$digest" ] || die "the registry reports no digest of $1"
  printf '%s' "$digest"
}

# members LIST: prints the digests of the images that a list has, if there is one.
members() {
  manifest inspect "$1" 2>/dev/null | sed -n 's/.*"digest": "\(sha256:[0-9a-f]*\)".*/\1/p' | sort || true
}

# push IMAGE NAME: pushes a local image as NAME.
push() {
  say "pushing $2"
  [ "$1" = "$2" ] || docker tag "$1" "$2"
  docker push --quiet "$2" >/dev/null || die "$2 could not be pushed: run the same command again, and it is not baked again"
  # Without TLS, docker says of every image that it is not there.
  published "$2" || die "$2 was pushed, but the registry does not show it: if it has no TLS, add --insecure"
  say "pushed $2@$(digest_of "$2")"
}

# list_contents IMAGE: copies the list of what is in the image out of it.
list_contents() {
  local container file=$sboms/kind-$version-$arch.cdx.json
  mkdir -p "$sboms"
  container=$(docker create "$1")
  docker cp "$container:/kind/sbom.cdx.json" "$file" >/dev/null || die "$1 does not say what is in it; the reason is above"
  docker rm --volumes "$container" >/dev/null
  say "what is in it is in $file"
}

# bake MINOR: pushes this machine's image, unless that was done, and sets $version to its Kubernetes version.
bake() {
  local name last temporary=kind-release:$$
  version=$("$here/build.sh" ${build[@]+"${build[@]}"} --print-version) || die "there is no Kubernetes $1 to bake; the reason is above"
  version=${version#v}
  name=$repository:$version-$commit-$contents-$arch last=$repository:$version-$commit-$arch
  if published "$name"; then
    say "$name was pushed already"
    return
  fi
  # An image that was baked, but not pushed.
  if ! docker image inspect "$name" >/dev/null 2>&1; then
    "$here/build.sh" ${build[@]+"${build[@]}"} "$temporary"
    docker tag "$temporary" "$name"
    docker image rm "$temporary" >/dev/null
  fi
  [ -z "$sboms" ] || list_contents "$name"
  # The name that stays says that nothing is left to do, so it comes last.
  [ -z "$zstd" ] || "$here/scripts/zstd.sh" ${insecure[@]+"${insecure[@]}"} "$name" "$repository:$version-zstd-$arch"
  push "$name" "$last"
  push "$name" "$name"
  docker image rm "$name" "$last" >/dev/null
}

# join MINOR: makes the lists once each architecture has been pushed.
join() {
  local one name list digest images=() missing=() lists=("$version-$(date -u +%Y%m%d)" "$version" "$1" "latest-$1")
  [ "$1" != "$newest" ] || lists+=(latest)
  for one in ${architectures//,/ }; do
    name=$repository:$version-$commit-$one
    if published "$name"; then images+=("$repository@$(digest_of "$name")"); else missing+=("$one"); fi
  done
  if [ ${#missing[@]} != 0 ]; then
    say "$repository:$version waits for ${missing[*]}: run this command on such a machine, at commit ${commit%-dirty}"
    return
  fi
  # The last one is made last, so if it is up to date, all are.
  if [ "$(members "$repository:${lists[-1]}")" = "$(printf '%s\n' "${images[@]#*@}" | sort)" ]; then
    say "$repository:$version is up to date"
    return
  fi
  for list in "${lists[@]}"; do
    # What an interrupted run has left on this machine.
    docker manifest rm "$repository:$list" >/dev/null 2>&1 || true
    manifest create "$repository:$list" "${images[@]}" >/dev/null
    digest=$(manifest push --purge "$repository:$list")
    say "published $repository:$list@$digest"
  done
}

# A registry that does not answer is no reason to build anything.
published "$repository:latest" || true
# What changes without a commit. The day has packages installed anew that this engine has in its cache.
KIND_FRESH=$(date -u +%Y%m%d)
export KIND_FRESH
contents=$("$here/build.sh" ${build[@]+"${build[@]}"} --print-contents) || die "what would be baked cannot be found out; the reason is above"
contents=$(printf '%s' "$contents" | git hash-object --stdin | cut -c 1-8)
for minor in "${minors[@]}"; do
  export KUBERNETES_VERSION=$minor
  bake "$minor"
  join "$(cut -d . -f 1,2 <<<"$version")"
done
