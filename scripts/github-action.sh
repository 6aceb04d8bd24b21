#!/usr/bin/env bash
# What action.yml does with a container of kind, through the files that GitHub's runner names.
#   github-action.sh start|stop
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")

start() {
  local container url
  # Ports that the engine chooses, so that a job can have several clusters.
  # shellcheck disable=SC2086
  container=$(docker run --detach --privileged --name "$INPUT_NAME" --publish 127.0.0.1::2375 --publish 127.0.0.1::8443 \
    --publish 127.0.0.1::10080 $INPUT_ARGS "$INPUT_IMAGE")
  printf 'container=%s\ndocker_host=%s\n' "$container" "${DOCKER_HOST:-}" >>"$GITHUB_STATE"
  port() { docker port "$container" "$1" | sed -n '1s/.*://p'; }
  KIND_PORT=$(port 10080) KIND_API_PORT=$(port 8443) kubeconfig=$RUNNER_TEMP/$INPUT_NAME/kubeconfig
  docker_host=tcp://127.0.0.1:$(port 2375) url=http://127.0.0.1:$KIND_PORT
  printf 'DOCKER_HOST=%s\nKUBECONFIG=%s\n' "$docker_host" "$kubeconfig" >>"$GITHUB_ENV"
  printf 'docker_host=%s\nkubeconfig=%s\nurl=%s\naddress=%s\n' "$docker_host" "$kubeconfig" "$url" \
    "$(docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$container")" >>"$GITHUB_OUTPUT"
  export KIND_HOST=127.0.0.1 KIND_PORT KIND_API_PORT
  "$here/../wait-for-kind.sh" "$INPUT_WAIT" --timeout "$INPUT_TIMEOUT" --kubeconfig "$kubeconfig" --name "$INPUT_NAME"
}

# The job's steps, and this one too, have the inner Docker's address in DOCKER_HOST.
stop() {
  local container=${STATE_container:?}
  if [ -n "${STATE_docker_host:-}" ]; then export DOCKER_HOST=$STATE_docker_host; else unset DOCKER_HOST; fi
  if [ "$INPUT_JOB_STATUS" != success ]; then
    echo "::group::kind: what was ready, and its log"
    docker exec "$container" kind status || true
    docker logs "$container" || true
    echo "::endgroup::"
  fi
  docker rm --force --volumes "$container" >/dev/null
}

"$1"
