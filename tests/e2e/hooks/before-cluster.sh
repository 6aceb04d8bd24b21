#!/usr/bin/env bash
# Runs before the cluster is there. Leaves what tests/e2e/baked.rs looks for, and secrets in every place where tools
# keep them, none of which may be in the image. Nor may this: the-text-of-a-hook.
set -euo pipefail
echo "e2e: before-cluster runs"
docker version --format 'e2e: Docker {{.Server.Version}} answers'
if kubectl get nodes --request-timeout 2s >/dev/null 2>&1; then
  echo "e2e: the cluster is there before the hook that runs before it" >&2
  exit 1
fi
secret=${KIND_TEST_SECRET:?--env KIND_TEST_SECRET passes it on}
mkdir -p ~/.docker ~/.aws ~/.config/helm/registry /run/containers/0
# As `docker login` leaves it where there is no credential helper, and Helm and skopeo after it.
for file in ~/.docker/config.json ~/.config/helm/registry/config.json /run/containers/0/auth.json; do
  printf '{"auths": {"registry.example": {"username": "e2e", "password": "%s", "auth": "%s"}}}\n' "$secret" "$(printf %s "e2e:$secret" | base64 -w 0)" >"$file"
done
printf 'machine registry.example login e2e password %s\n' "$secret" >~/.netrc
printf '[default]\naws_secret_access_key = %s\n' "$secret" >/root/.aws/credentials
printf %s "$secret" | tee /tmp/token >/var/tmp/token
printf %s "$secret" | gzip >"$(mktemp)"
echo "before-cluster" >/var/lib/from-hook
