# shellcheck shell=bash
# shellcheck disable=SC2034
# What .ci/run is made of: where Kubernetes comes from, jobs beside each other, and what was run in the end. Sourced by
# .ci/run, never run.

export CI=true KIND_TEST_SECRET="secret-of-this-run-$$" KIND_IMAGE=kind:ci
work=$(mktemp -d)
export work ran=$work/ran
workers=$(($(nproc) + 1))
most_second_attempts=3
began=$SECONDS

. scripts/debian/lib.sh
log() { echo "ci: $*" >&2; }
# lib.sh turns BuildKit off for its own recipes; the product is built as its users build it.
unset DOCKER_BUILDKIT

step() { printf '\n=== %s (%d s)\n' "$*" $((SECONDS - began)); }

begin() {
  trap 'rm -rf "$work"' EXIT
  # Beyond what ./test.sh installs.
  need docker-registry:docker-registry zstd:zstd xz:xz-utils htpasswd:apache2-utils docker-compose:docker-compose openssl:openssl \
    python3:python3 bc:bc npm:npm rsync:rsync git:git curl:curl /etc/ssl/certs/ca-certificates.crt:ca-certificates
  scripts/debian/engine.sh
  # Only now: an engine that is not running finds no container.
  ! docker container inspect kind >/dev/null 2>&1 ||
    die "a container named kind already exists, and this run did not create it; remove it with: docker rm --force --volumes kind"
  trap clean_up EXIT
}

# choose_bundle: sets $KIND_BUNDLE to a bundle's directory, $kubernetes to its version, $complete if it has everything
# that a build needs, and, where it has not, the images that a build then begins with.
choose_bundle() {
  local arch archive
  arch=$(dpkg --print-architecture)
  archive=$(find ../shared/kubernetes -name "kubernetes-*-$arch.tar.xz" 2>/dev/null | sort -V | tail -n 1)
  if [ -n "${KIND_CI_BUNDLE:-}" ]; then
    KIND_BUNDLE=$KIND_CI_BUNDLE
  elif [ -n "$archive" ]; then
    KIND_BUNDLE=$cache/ci/$(stamp "$archive")
    [ -d "$KIND_BUNDLE" ] || timed "unpacking ${archive##*/}" unpack "$archive"
  elif kubernetes=$(./build.sh --print-version) && ./build.sh --bundle-only --bundle "$work/released"; then
    KIND_BUNDLE=$work/released
    tests/lab/add-busybox.sh "$KIND_BUNDLE"
  else
    leave_out "a current Kubernetes, a restored start as the default, and the newest Docker and containerd"
    KIND_BUNDLE=$work/debian
    ./build.sh --debian --bundle-only --bundle "$KIND_BUNDLE"
  fi
  [ -f "$KIND_BUNDLE/bundle.env" ] || die "$KIND_BUNDLE is no bundle: it has no bundle.env"
  kubernetes=$(sed -n 's/^KUBERNETES_VERSION=//p' "$KIND_BUNDLE/bundle.env")
  complete=$(sed -n 's/^COMPLETE=//p' "$KIND_BUNDLE/bundle.env")
  export KIND_BUNDLE complete
  [ -z "$complete" ] || return 0
  scripts/debian/images.sh sid
  export DEBIAN_IMAGE=kind-lab/debian:trixie DOCKER_IMAGE=kind-lab/docker:sid-dind RUST_IMAGE=kind-lab/rust:1
}

unpack() {
  mkdir -p "$cache/ci"
  rm -rf "$KIND_BUNDLE.new"
  mkdir "$KIND_BUNDLE.new"
  tar -C "$KIND_BUNDLE.new" --strip-components=1 -xJf "$1"
  mv "$KIND_BUNDLE.new" "$KIND_BUNDLE"
}

# build ARGUMENT...: builds with the tests' hooks and images.
build() {
  KIND_HOOKS=tests/e2e/hooks KIND_IMAGES=tests/e2e/images.sh ./build.sh --env KIND_TEST_SECRET "$@"
}

# e2e ARGUMENT...: runs end-to-end tests. Up to two that fail are tried once more, since others run beside them on machines of
# any speed; the last lines of the run name them, and `finish` bounds their number.
e2e() {
  local names
  if run_tests "$@"; then return; fi
  mapfile -t names < <(sed -n 's/^test \([a-z0-9_:]*\) \.\.\. FAILED$/\1/p' "$output")
  [ "${#names[@]}" -ge 1 ] && [ "${#names[@]}" -le 2 ] || return 1
  log "a second attempt: ${names[*]}"
  run_tests --exact "${names[@]}" || return 1
  printf '%s\n' "${names[@]}" >>"$work/second-attempts"
}

# run_tests ARGUMENT...: runs them one after another, notes which were run, begins each line with its time, and leaves what they
# said in the file $output.
run_tests() {
  local status=0
  output=$(mktemp "$work/e2e.XXXXXX")
  cargo test --locked --test e2e -- --ignored --test-threads=1 "$@" 2>&1 | tee "$output" | while IFS= read -r line; do
    printf '%5d s  %s\n' $((SECONDS - began)) "$line"
  done || status=$?
  sed -n 's/^test \([a-z0-9_:]*\) \.\.\..*/\1/p' "$output" >>"$ran"
  grep -q '^test .* \.\.\.' "$output" || die "no end-to-end test is named $*"
  return "$status"
}

# list_tests: writes the names of all end-to-end tests, which compiles them once for all jobs.
list_tests() {
  cargo test --locked --test e2e -- --ignored --list 2>"$work/compiler" >"$work/list" || { cat "$work/compiler" >&2; return 1; }
  sed -n 's/: test$//p' "$work/list" | sort >"$work/tests"
}

# leave_out WHAT: says at the end what this run could not look at.
leave_out() {
  log "LEFT OUT: $*"
  echo "$*" >>"$work/left-out"
}

# Jobs by process id; the logs of those that have failed by name.
declare -A running=() logs=() since=() failed=()

# beside JOB: runs a shell command in the background, in its own process group, once there is a free worker.
beside() {
  local log
  [ "${#running[@]}" -lt "$workers" ] || end_one
  log=$(mktemp "$work/job.XXXXXX")
  set -m
  (set -e && eval "$1") >"$log" 2>&1 </dev/null &
  set +m
  running[$!]=$1 logs[$!]=$log since[$!]=$((SECONDS - began))
}

# end_one: waits for whichever job ends next, and shows what it had to say.
end_one() {
  local pid status=0
  wait -n -p pid "${!running[@]}" || status=$?
  step "${running[$pid]}: its output"
  cat "${logs[$pid]}"
  step "${running[$pid]}: ended with status $status"
  printf '%5d to %5d s  %s\n' "${since[$pid]}" $((SECONDS - began)) "${running[$pid]}" >>"$work/times"
  [ "$status" = 0 ] || failed[${running[$pid]}]=${logs[$pid]}
  unset "running[$pid]"
}

# join: waits for all jobs. The run ends here if one has failed, with the end of its output: a long log is often cut at its
# beginning.
join() {
  local job
  while [ "${#running[@]}" != 0 ]; do end_one; done
  step "where the time went"
  cat "$work/times"
  [ "${#failed[@]}" != 0 ] || return 0
  for job in "${!failed[@]}"; do
    step "failed: $job; the end of its output"
    tail -n 60 "${failed[$job]}"
  done
  die "failed, with the reason above: $(printf '%s; ' "${!failed[@]}")"
}

# Terminates what still runs, waits until it has cleaned up, and shows what it had to say.
clean_up() {
  local pid
  for pid in "${!running[@]}"; do
    kill -TERM -- "-$pid" 2>/dev/null || true
    for _ in $(seq 600); do
      kill -0 -- "-$pid" 2>/dev/null || break
      sleep 0.1
    done
    step "${running[$pid]}: was not waited for; its output so far"
    cat "${logs[$pid]}"
  done
  docker rm --force --volumes kind >/dev/null 2>&1 || true
  docker image rm --force "$KIND_IMAGE" kind:ci-debian kind:ci-node >/dev/null 2>&1 || true
  rm -rf "$work"
}

# finish ALLOWED...: fails if a test was passed over, and says what was run. What may be skipped is given as "NAME: REASON".
finish() {
  local line passed skips not_run
  not_run=$(sort -u "$ran" | comm -23 "$work/tests" -)
  [ -z "$not_run" ] || die "these end-to-end tests were not run, because no job of .ci/run names them: $not_run"
  skips=$(cat "$work"/e2e.* "$work"/job.* | sed -n 's/.*SKIPPED: //p' | sort -u)
  while IFS= read -r line; do
    [ -z "$line" ] || printf '%s\n' "$@" | grep -qxF -- "$line" || die "a test was skipped that is not on the list of .ci/run: $line"
  done <<<"$skips"
  touch "$work/second-attempts"
  [ "$(wc -l <"$work/second-attempts")" -le "$most_second_attempts" ] ||
    die "too many tests have passed at the second attempt alone: $(paste -s -d " " "$work/second-attempts")"
  passed=$(cat "$work"/e2e.* "$work"/job.* | sed -n 's/^test result: .*\. \([0-9]*\) passed.*/\1/p' | paste -s -d + | bc)
  step "Kubernetes $kubernetes: every end-to-end test has passed"
  [ -z "$skips" ] || printf 'skipped, as the list of .ci/run allows: %s\n' "$skips"
  sed 's/^/left out: /' "$work/left-out" 2>/dev/null || true
  sed 's/^/failed, and passed at the second attempt: /' "$work/second-attempts"
  printf 'tests: %d passed, 0 failed, %d skipped\n' "$passed" "$(grep -c . <<<"$skips")"
}
