#!/usr/bin/env bash
# Looks at the page of port 10081 in Debian's Chromium: while a node starts, ready, dark, on a phone, reset, failed. Leaves
# screenshots in DIRECTORY. Not a part of CI: it needs the packages chromium, nodejs and npm, and two packages of npm's.
#   tests/browser/run.sh IMAGE DIRECTORY
set -euo pipefail
image=${1:?usage: tests/browser/run.sh IMAGE DIRECTORY} screenshots=$(realpath "${2:?usage: tests/browser/run.sh IMAGE DIRECTORY}")
here=$(dirname "$(realpath "$0")")
cache=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kind}/browser packages=(playwright-core@1.65.1 axe-core@4.14.1)
for program in docker node npm "${CHROMIUM:-chromium}"; do
  command -v "$program" >/dev/null || { echo "$program is missing: install it" >&2; exit 1; }
done

if [ "$(cat "$cache/made" 2>/dev/null)" != "${packages[*]}" ]; then
  rm -rf "$cache"
  npm install --silent --prefix "$cache" "${packages[@]}"
  echo "${packages[*]}" >"$cache/made"
fi

work=$(mktemp -d) name=kind-browser-$$
clean_up() {
  docker rm --force --volumes "$name" "$name-failing" >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap clean_up EXIT

# start CONTAINER PROGRAM: starts a node in which what is on standard input is run in place of a program.
start() {
  cat >"$work/program"
  chmod +x "$work/program"
  docker create --privileged --name "$1" "$image" >/dev/null
  docker cp "$work/program" "$1:$2" >/dev/null
  docker start "$1" >/dev/null
}
address() { docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }

start "$name" /usr/local/sbin/dockerd <<'SCRIPT'
#!/bin/sh
until [ -e /go ]; do sleep 0.1; done
exec /usr/local/bin/dockerd "$@"
SCRIPT
start "$name-failing" /usr/local/bin/kubelet <<'SCRIPT'
#!/bin/sh
echo 'this kubelet does not start <b>at all</b>'
exit 3
SCRIPT

mkdir -p "$screenshots"
cd "$cache"
node "$here/page.mjs" "$name" "$(address "$name")" "$(address "$name-failing")" "$screenshots"
echo "the page works; the screenshots are in $screenshots"
