#!/usr/bin/env bash
# Runs before the cluster is there. Leaves what tests/e2e/baked.rs looks for, and a login that the bake has to remove.
set -euo pipefail
echo "e2e: before-cluster runs"
docker version --format 'e2e: Docker {{.Server.Version}} answers'
if kubectl get nodes --request-timeout 2s >/dev/null 2>&1; then
  echo "e2e: the cluster is there before the hook that runs before it" >&2
  exit 1
fi
# As `docker login` leaves it where there is no credential helper.
mkdir -p ~/.docker
printf '{"auths": {"registry.example": {"username": "e2e", "password": "%s"}}}\n' "${KIND_TEST_SECRET:?--env KIND_TEST_SECRET passes it on}" >~/.docker/config.json
echo "before-cluster" >/var/lib/from-hook
