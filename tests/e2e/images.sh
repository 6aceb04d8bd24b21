#!/usr/bin/env bash
# Stands in for `docker pull`: an image that only this script makes, of one that is there.
set -euo pipefail
echo "e2e: images.sh runs"
docker tag kind-lab/busybox:1 from-images:1
# Layers that delete a file, and replace a directory, of the layers below.
DOCKER_BUILDKIT=0 docker build --quiet --tag deletes:1 - <<'DOCKERFILE'
FROM kind-lab/busybox:1
RUN mkdir /replaced && echo below >/replaced/below && echo gone >/deleted
RUN rm /deleted && rm -r /replaced && mkdir /replaced && echo above >/replaced/above
DOCKERFILE
