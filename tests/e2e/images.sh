#!/usr/bin/env bash
# Stands in for `docker pull`: images that only this script makes, of one that is there.
set -euo pipefail
echo "e2e: images.sh runs"
# There is no registry that has it: each of these is satisfied by what is there.
arch=$(docker version --format '{{.Server.Arch}}')
docker pull kind-lab/busybox:1
docker pull --quiet --platform "linux/$arch" kind-lab/busybox:1
busybox=$(docker image pull "--platform=linux/$arch" -q kind-lab/busybox:1)
! docker pull --platform linux/s390x kind-lab/busybox:1 2>/dev/null || { echo "e2e: an image of another platform is there" >&2; exit 1; }
docker tag "$busybox" from-images:1
# Layers that delete a file, and replace a directory, of the layers below.
docker build --quiet --tag deletes:1 - <<'DOCKERFILE'
FROM kind-lab/busybox:1
RUN mkdir /replaced && echo below >/replaced/below && echo gone >/deleted
RUN rm /deleted && rm -r /replaced && mkdir /replaced && echo above >/replaced/above
DOCKERFILE
# What a container or a build has used is still flattened: containerd refuses to remove such a layer.
docker run --rm deletes:1 ls /replaced/above
printf 'FROM deletes:1\nRUN true\n' | docker build --quiet --tag gone:1 -
docker image rm gone:1
# BuildKit, whose cache has more secrets in it than the image: of a stage that is left out, of its arguments, of a
# mount, and of the context. The login of before-cluster.sh is still there, and so are its other files.
grep -q "$KIND_TEST_SECRET" ~/.docker/config.json
mkdir /tmp/context
cp /tmp/token /tmp/context/
cat >/tmp/context/Dockerfile <<'DOCKERFILE'
FROM kind-lab/busybox:1 AS left-out
ARG TOKEN
COPY token /token
RUN --mount=type=secret,id=token,required --mount=type=cache,target=/cache \
  cat /run/secrets/token >/cache/token && cat /run/secrets/token >/copy && echo "$TOKEN" >/argument && seq 1000 >/numbers
FROM kind-lab/busybox:1
COPY --from=left-out /numbers /numbers
RUN --mount=type=secret,id=token cat /run/secrets/token >/dev/null && echo a-layer | sed "s|^|kept-in-|" >/kept
RUN echo linked >/linked && touch -d '2001-01-01 00:00' /linked && ln /linked /link
DOCKERFILE
docker build --quiet --secret id=token,src=/root/.aws/credentials --build-arg TOKEN="$KIND_TEST_SECRET" --tag buildkit:1 /tmp/context
# Containers and their configuration go before the image is made.
docker run --rm --env TOKEN="$KIND_TEST_SECRET" kind-lab/busybox:1 true
docker create --env TOKEN="$KIND_TEST_SECRET" kind-lab/busybox:1 >/dev/null
