#!/usr/bin/env bash
# add-busybox.sh BUNDLE: adds to a bundle the image that the end-to-end tests run in pods, pulled from Docker Hub.
set -euo pipefail
bundle=${1:?usage: add-busybox.sh BUNDLE}
source=${BUSYBOX_IMAGE:-busybox:stable-musl}

docker image inspect "$source" >/dev/null 2>&1 || docker pull --quiet "$source"
docker tag "$source" kind-lab/busybox:1
docker save --output "$bundle/images/busybox.tar" kind-lab/busybox:1
cd "$bundle"
grep -v ' images/busybox.tar$' SHA256SUMS >SHA256SUMS.new || true
sha256sum images/busybox.tar >>SHA256SUMS.new
mv SHA256SUMS.new SHA256SUMS
