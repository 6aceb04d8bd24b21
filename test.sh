#!/usr/bin/env bash
# Runs every test that needs no image. See `./test.sh --help`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
Usage: ./test.sh [--no-install]

Runs what needs neither a Docker engine nor an image: lint, the unit and integration tests, and the checks of the
examples and the documentation. On Debian 12 and 13 it first installs what is missing, Rust included, as root or with
sudo; elsewhere it says what is missing and goes on with what is there. The end lists what was left out.
  --no-install   install nothing, on Debian too

With CI=true, nothing may be left out. .ci/run runs this, and then the end-to-end tests on an image.
TEXT
}

install=1
case $* in
  '') ;;
  --no-install) install='' ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

# shellcheck source=scripts/debian/lib.sh
. scripts/debian/lib.sh
log() { printf 'test: %s\n' "$*"; }
step() { printf '\n=== test: %s (%d s)\n' "$*" "$SECONDS"; }
# lib.sh turns BuildKit off for its own recipes.
unset DOCKER_BUILDKIT
[ "$(uname -s)" = Linux ] || die "the init and its tests need Linux: run this in a Linux machine or container"

release=''
# shellcheck source=/dev/null
[ ! -r /etc/os-release ] || release=$(. /etc/os-release && echo "$ID-${VERSION_CODENAME:-}")
case $release in
  debian-bookworm | debian-trixie) ;;
  *) [ -z "$install" ] || log "this is not Debian 12 or 13, so nothing is installed"; install='' ;;
esac
if [ -n "$install" ] && [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
  log "this is not root, and there is no sudo: nothing is installed"
  install=''
fi

left_out=()
leave_out() {
  left_out+=("$*")
  log "left out: $*"
}

# can WHAT COMMAND:PACKAGE... succeeds if every command (or file) is there, or could be installed.
can() {
  local what=$1 pair missing=()
  shift
  [ -z "$install" ] || need "$@"
  for pair; do
    command -v "${pair%%:*}" >/dev/null || [ -e "${pair%%:*}" ] || missing+=("${pair%%:*}")
  done
  [ "${#missing[@]}" = 0 ] || { leave_out "$what: this machine lacks ${missing[*]}"; return 1; }
}

# Installs Rust, unless there is one already. Debian 12's own is too old; its security updates have a newer one, which
# its browsers are compiled with.
find_rust() {
  local oldest version suffix='' clippy=rust-clippy
  oldest=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  [ "$release" != debian-bookworm ] || suffix=-web clippy=rust-web-clippy
  if [ -n "$install" ] && ! command -v cargo >/dev/null; then
    need "cargo:cargo$suffix" "cargo-fmt:rustfmt$suffix" "cargo-clippy:$clippy"
  fi
  version=$(cargo --version 2>/dev/null | cut -d ' ' -f 2) || true
  [ "$(printf '%s\n' "$oldest" "${version:-0}" | sort -V | head -n 1)" = "$oldest" ] \
    || die "Rust $oldest or newer is needed; here is ${version:-none}. https://rustup.rs has the newest"
}

lint_scripts() {
  shellcheck -x -a --source-path=SCRIPTDIR build.sh
  shellcheck -x .ci/run
  shellcheck -x --source-path=SCRIPTDIR test.sh run.sh scripts/release.sh scripts/zstd.sh images.sh wait-for-kind.sh src/bake/docker.sh hooks/*.sh scripts/debian/*.sh \
    scripts/debian/runc-without-sys-resource tests/lab/*.sh tests/lab/*/*.sh tests/stress/*.sh tests/e2e/*.sh tests/e2e/hooks/*.sh tests/bench/*.sh examples/*.sh tests/browser/*.sh scripts/github-action.sh
}

find_rust
step "lint"
! can "lint of the shell scripts" shellcheck:shellcheck || lint_scripts
! can "the documentation's links" python3:python3 || scripts/check-links.py ./*.md docs/*.md scripts/*/*.md tests/*/*.md
! can "the source's format" cargo-fmt:rustfmt || cargo fmt --all --check
# Each version of clippy has lints of its own, so only CI's is a judge.
strict=()
[ "${CI:-}" != true ] || strict=(-D warnings)
! can "clippy" cargo-clippy:rust-clippy || cargo clippy --all-targets --locked -- "${strict[@]}"

step "examples"
if can "the checks of the examples" python3:python3 /etc/ssl/certs/ca-certificates.crt:ca-certificates; then
  python3 -c 'import ensurepip' 2>/dev/null || [ -z "$install" ] || need ensurepip:python3-venv
  if python3 -c 'import ensurepip' 2>/dev/null; then examples/check.sh; else leave_out "the checks of the examples: this machine lacks python3-venv"; fi
fi

step "unit and integration tests"
if can "the unit and integration tests" cc:gcc unshare:util-linux ip:iproute2 curl:curl wget:wget busybox:busybox openssl:openssl zstd:zstd xz:xz-utils; then
  # As root in a machine or a privileged container, no test needs to be skipped.
  output=$(mktemp)
  trap 'rm -f "$output"' EXIT
  cargo test --locked 2>&1 | tee "$output"
  number=$(grep -c '^SKIPPED: ' "$output" || true)
  [ "$number" = 0 ] || leave_out "$number tests that need root or namespaces, named above: run this as root, in a machine or a privileged container"
fi

step "done"
if [ "${#left_out[@]}" != 0 ]; then
  log "passed, but for what was left out:"
  printf '  %s\n' "${left_out[@]}"
  [ "${CI:-}" != true ] || die "with CI=true nothing may be left out"
else
  log "passed, with nothing left out"
fi
log "the end-to-end tests, which need a Docker engine and an image, are not among these: .ci/run runs everything"
