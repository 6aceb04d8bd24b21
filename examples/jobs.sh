# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154
# The CI systems' jobs among the parts of run.sh, and what they run: a project with an app and its test. Sourced by run.sh,
# never run.

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

# repository DIRECTORY EXAMPLE: makes a repository of a project, with this GitLab job.
repository() {
  cp "$2" "$1/.gitlab-ci.yml"
  git -C "$1" init --quiet --initial-branch main
  git -C "$1" remote add origin https://gitlab.example.com/group/project.git
  git -C "$1" add .
  git -C "$1" -c user.name=kind -c user.email=kind@example.com commit --quiet --message project
}

# job DIRECTORY JOB IMAGE: runs a GitLab job in an image; its log is $work/log.
job() {
  (cd "$1" && timeout "$limit" gitlab-ci-local --privileged --pull-policy if-not-present --helper-image "$image" --no-color \
    --variable "KIND_IMAGE=$image" --variable "JOB_IMAGE=$3" "$2") >"$work/log" 2>&1
}

gitlab() {
  local directory=$work/gitlab
  npm_tools
  project "$directory"
  repository "$directory" gitlab-ci.yml
  job "$directory" integration-test "$image" || { cat "$work/log"; die "gitlab-ci.yml fails"; }
  grep "the app works" "$work/log"
  make_plain_image
  job "$directory" integration-test "$plain" || { cat "$work/log"; die "gitlab-ci.yml fails in an image other than kind's"; }
  grep "the app works" "$work/log"
  # The negative control: an app that does not work fails the job.
  sed -i 's/it works/it does not/' "$directory/Dockerfile"
  ! job "$directory" integration-test "$image" || { cat "$work/log"; die "gitlab-ci.yml succeeds with an app that does not work"; }
  grep "the app does not answer" "$work/log"
  grep "the logs are in kind-logs" "$work/log"
}

two_clusters() {
  local directory=$work/two-clusters
  npm_tools
  project "$directory"
  repository "$directory" gitlab-two-clusters.yml
  job "$directory" two-clusters "$image" || { cat "$work/log"; die "gitlab-two-clusters.yml fails"; }
  [ "$(grep -c "the app works" "$work/log")" = 2 ]
  grep "the app works" "$work/log"
}

# The component is included as a file of the project's own.
component() {
  local directory=$work/component
  npm_tools
  project "$directory"
  mkdir "$directory/templates"
  cp ../templates/kind.yml "$directory/templates/"
  sed -e 's|component: .*|local: /templates/kind.yml|' -e "s|image: .*|image: $image|" gitlab-component.yml >"$work/gitlab-component.yml"
  repository "$directory" "$work/gitlab-component.yml"
  job "$directory" integration-test "$image" || { cat "$work/log"; die "gitlab-component.yml fails"; }
  grep "the app works" "$work/log"
  sed -i 's/it works/it does not/' "$directory/Dockerfile"
  ! job "$directory" integration-test "$image" || { cat "$work/log"; die "gitlab-component.yml succeeds with an app that does not work"; }
  grep "the logs are in kind-logs" "$work/log"
}

action() {
  local directory=$work/action root
  root=$(cd .. && pwd)
  command -v node >/dev/null || die "node is missing: install nodejs"
  project "$directory"
  runner() {
    (cd "$directory" && timeout "$limit" python "$root/examples/runner.py" "$root/examples/github-action.yml" "$root" \
      "image=$image" "name=$name" "args=--label $name") >"$work/log" 2>&1
  }
  gone() { ! docker container inspect "$name" >/dev/null 2>&1 || die "the action leaves its container behind"; }
  runner || { cat "$work/log"; die "github-action.yml fails"; }
  grep "the app works" "$work/log"
  gone
  sed -i 's/it works/it does not/' "$directory/Dockerfile"
  ! runner || { cat "$work/log"; die "github-action.yml succeeds with an app that does not work"; }
  grep "::group::kind: what was ready" "$work/log"
  gzip -t "$directory/kind-logs.tar.gz"
  gone
}
