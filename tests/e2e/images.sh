#!/usr/bin/env bash
# Stands in for `docker pull`: an image that only this script makes, of one that is there.
set -euo pipefail
echo "e2e: images.sh runs"
docker tag kind-lab/busybox:1 from-images:1
