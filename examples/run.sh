#!/usr/bin/env bash
# Runs with IMAGE the examples that need no outside service: GitLab CI through gitlab-ci-local, Docker Compose,
# Testcontainers, and the clients of clients.sh. Removes everything that they create.
#   examples/run.sh IMAGE [gitlab] [compose] [testcontainers] [clients]
set -euo pipefail
cd "$(dirname "$0")"
image=${1:?usage: examples/run.sh IMAGE [gitlab] [compose] [testcontainers] [clients]}
shift
[ $# -gt 0 ] || set -- gitlab compose testcontainers clients
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

# project DIRECTORY: creates what a user's repository holds besides the example: an app and its test.
project() {
  mkdir -p "$1"
  cat >"$1/Dockerfile" <<'DOCKERFILE'
FROM kind-lab/busybox:1
RUN mkdir -p /www && echo "it works" >/www/index.html
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
DOCKERFILE
  cat >"$1/test.sh" <<'SCRIPT'
#!/usr/bin/env bash
# Asks the app until it answers, for up to 20 s; with bash alone.
set -euo pipefail
url=${1#http://} answer=''
for _ in $(seq 100); do
  answer=$({ exec 3<>"/dev/tcp/${url%:*}/${url#*:}" && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3; } 2>/dev/null) || true
  [[ $answer != *"it works"* ]] || { echo "the app works"; exit; }
  sleep 0.2
done
echo "the app does not answer: $answer" >&2
exit 1
SCRIPT
  chmod +x "$1/test.sh"
}

# Builds a job image that is not kind's, and sets $plain to its name.
make_plain_image() {
  local from=$name-tools
  plain=$name-job
  mkdir "$work/job"
  docker create --label "$name" --name "$from" "$image" >/dev/null
  docker cp "$from:/usr/local/bin/kubectl" "$work/job/" >/dev/null
  cp ../wait-for-kind.sh "$work/job/"
  printf '%s\n' 'FROM kind-lab/docker:trixie-dind' 'COPY kubectl wait-for-kind.sh /usr/local/bin/' >"$work/job/Dockerfile"
  DOCKER_BUILDKIT=0 docker build --quiet --tag "$plain" "$work/job" >/dev/null 2>&1 || die "the plain image cannot be built"
}

gitlab() {
  local directory=$work/gitlab
  gitlab_ci_local
  project "$directory"
  cp gitlab-ci.yml "$directory/.gitlab-ci.yml"
  git -C "$directory" init --quiet --initial-branch main
  git -C "$directory" remote add origin https://gitlab.example.com/group/project.git
  git -C "$directory" add .
  git -C "$directory" -c user.name=kind -c user.email=kind@example.com commit --quiet --message project
  job() {
    (cd "$directory" && timeout "$limit" gitlab-ci-local --privileged --pull-policy if-not-present --helper-image "$image" --no-color \
      --variable "KIND_IMAGE=$image" --variable "JOB_IMAGE=$1" integration-test) >"$work/log" 2>&1
  }
  job "$image" || { cat "$work/log"; die "gitlab-ci.yml fails"; }
  grep "the app works" "$work/log"
  make_plain_image
  job "$plain" || { cat "$work/log"; die "gitlab-ci.yml fails in an image other than kind's"; }
  grep "the app works" "$work/log"
  # The negative control: an app that does not work fails the job.
  sed -i 's/it works/it does not/' "$directory/Dockerfile"
  ! job "$image" || { cat "$work/log"; die "gitlab-ci.yml succeeds with an app that does not work"; }
  grep "the app does not answer" "$work/log"
}

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

clients() {
  timeout "$limit" ./clients.sh "$image" "$name"
}

python_tools
for part; do
  case $part in
    gitlab | compose | testcontainers | clients) ;;
    *) die "unknown part '$part'" ;;
  esac
  step "$part"
  "$part"
  step "$part: works"
done
