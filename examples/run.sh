#!/usr/bin/env bash
# Runs with IMAGE the examples that need no outside service: GitLab CI through gitlab-ci-local, GitHub's action through a
# stand-in for its runner, Docker Compose, Testcontainers, a dev container, and the clients of clients.sh. Removes everything
# that they create.
#   examples/run.sh IMAGE [PART...]
set -euo pipefail
cd "$(dirname "$0")"
parts=(gitlab two_clusters action compose testcontainers clients)
# Run only when they are named: they take long, or need Node.js 20.
more=(component testcontainers_node devcontainer)
image=${1:?usage: examples/run.sh IMAGE [PART...], of ${parts[*]} ${more[*]}}
shift
[ $# -gt 0 ] || set -- "${parts[@]}"
# shellcheck source=examples/tools.sh
. ./tools.sh
name=kind-examples-$$
export KIND_IMAGE=$image
# Seconds for one run of one example, on a busy machine.
limit=300

clean_up() {
  docker ps --all --quiet --filter "label=$name" | xargs -r docker rm --force --volumes >/dev/null
  docker network ls --quiet --filter "label=$name" | xargs -r docker network rm >/dev/null
  docker image rm --force "$name-job" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT

# shellcheck source=examples/jobs.sh
. ./jobs.sh

compose() {
  local directory=$work/compose command=(docker-compose) status=0
  ! docker compose version >/dev/null 2>&1 || command=(docker compose)
  command -v "${command[0]}" >/dev/null || die "Docker Compose is missing: install docker-compose"
  project "$directory"
  cp compose.yaml "$directory/"
  up() {
    timeout "$limit" "${command[@]}" --project-name "$name" --project-directory "$directory" --file "$directory/compose.yaml" "$@"
  }
  up up --no-color --exit-code-from test >"$work/log" 2>&1 || status=$?
  up down --volumes >/dev/null 2>&1
  [ "$status" = 0 ] || { cat "$work/log"; die "compose.yaml fails with $status"; }
  grep "the app works" "$work/log"
}

testcontainers() {
  # Ryuk, its container reaper, is an image on Docker Hub, which CI may not reach; the fixture cleans up after itself.
  TESTCONTAINERS_RYUK_DISABLED=true timeout "$limit" pytest -p no:cacheprovider --quiet test_with_testcontainers.py
}

testcontainers_node() {
  npm_tools
  cp testcontainers.test.mjs "$work/"
  ln -s "$npm/node_modules" "$work/node_modules"
  TESTCONTAINERS_RYUK_DISABLED=true timeout "$limit" node --test "$work/testcontainers.test.mjs"
}

devcontainer() {
  local directory=$work/devcontainer status=0
  npm_tools
  project "$directory"
  mkdir "$directory/.devcontainer"
  sed "s|\"image\": .*|\"image\": \"$image\", \"runArgs\": [\"--label\", \"$name\"],|" devcontainer.json >"$directory/.devcontainer/devcontainer.json"
  inside() { timeout "$limit" devcontainer "$@" >>"$work/log" 2>&1; }
  : >"$work/log"
  {
    inside up --workspace-folder "$directory" &&
      inside exec --workspace-folder "$directory" docker build --tag app:1 . &&
      inside exec --workspace-folder "$directory" kubectl create deployment app --image=app:1 &&
      inside exec --workspace-folder "$directory" kubectl rollout status deployment app --timeout=60s
  } || status=$?
  [ "$status" = 0 ] || { cat "$work/log"; die "devcontainer.json fails"; }
  grep "successfully rolled out" "$work/log"
}

clients() {
  timeout "$limit" ./clients.sh "$image" "$name"
}

python_tools
for part; do
  [[ " ${parts[*]} ${more[*]} " = *" $part "* ]] || die "unknown part '$part'"
  step "$part"
  "$part"
  step "$part: works"
done
