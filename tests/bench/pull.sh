#!/usr/bin/env bash
# From nothing to ready, for tests/bench/pull.rs: a registry on this machine, and an empty engine that pulls from it.
#
#   pull.sh publish DIR IMAGE NAME     puts IMAGE into the registry's DIR as kind:NAME (gzip) and kind:NAME-zstd
#   pull.sh measure DIR NAME ENGINE    prints how long the pull took, and the pull and the start together, in seconds
#
# ENGINE is `host`: another dockerd of this machine's, with its graph driver; or the name of an image that has one, which
# runs in a container, with containerd's store. Both have a network of their own, with the registry in it: a second
# dockerd would change the first one's. KIND_BENCH_ENGINE are more arguments of `dockerd` for the former. Needs root,
# docker-registry, and for zstd what scripts/zstd.sh needs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
address=127.0.0.1:5999

serve() {
  printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n' "$1" "$address" >"$2/registry.yaml"
  docker-registry serve "$2/registry.yaml" >/dev/null 2>&1 &
  until (: <"/dev/tcp/${address/:/\/}") 2>/dev/null; do sleep 0.1; done
}

now() { date +%s.%N; }

# engine DIR NAME WORK OPTION...: the part that runs in the network of its own.
engine() {
  local dir=$1 name=$2 work=$3 began pulled container
  shift 3
  export DOCKER_HOST=unix://$work/docker.sock
  serve "$dir" "$work"
  dockerd --host "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" "$@" >"$work/log" 2>&1 &
  until docker version >/dev/null 2>&1; do sleep 0.1; done
  sync
  began=$(now)
  docker pull --quiet "$address/kind:$name" >/dev/null
  pulled=$(now)
  # shellcheck disable=SC2086
  container=$(docker run --detach --privileged ${KIND_BENCH_ARGUMENTS:-} "$address/kind:$name")
  docker exec --env KIND_HOST=localhost "$container" wait-for-kind.sh kubernetes >/dev/null
  now | awk -v began="$began" -v pulled="$pulled" '{ printf "%.2f %.2f\n", pulled - began, $1 - began }'
  docker rm --force --volumes "$container" >/dev/null
  # shellcheck disable=SC2046
  kill $(jobs -p)
  wait
}

case $1 in
  publish)
    work=$(mktemp -d)
    trap 'kill %1; rm -rf "$work"' EXIT
    serve "$2" "$work"
    docker tag "$3" "$address/kind:$4"
    docker push --quiet "$address/kind:$4" >/dev/null
    docker image rm "$address/kind:$4" >/dev/null
    "$here/../../scripts/zstd.sh" --insecure "$3" "$address/kind:$4-zstd"
    ;;
  measure)
    # On a file system that overlayfs can lie on.
    work=$(mktemp -d /var/tmp/kind-pull-XXXXXX)
    trap 'rm -rf "$work" || { sleep 2; rm -rf "$work"; }' EXIT
    if [ "$4" = host ]; then
      # shellcheck disable=SC2086
      unshare --net --mount --pid --fork --mount-proc --kill-child "$0" engine "$2" "$3" "$work" ${KIND_BENCH_ENGINE:-}
    else
      docker run --rm --privileged --entrypoint bash --volume "$work:/work" --volume "$2:/registry" \
        --volume "$here/pull.sh:/pull.sh:ro" --volume "$(command -v docker-registry):/usr/local/bin/docker-registry:ro" \
        --env KIND_BENCH_ARGUMENTS "$4" /pull.sh engine /registry "$3" /work --feature containerd-snapshotter=true
    fi
    ;;
  engine)
    shift
    ip link set lo up 2>/dev/null || true
    engine "$@"
    ;;
esac
