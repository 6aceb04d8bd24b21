#!/usr/bin/env bash
# clients.sh IMAGE LABEL: runs other people's clients: from this machine through ports published under other
# numbers and at the container's own address, and from another container by alias. run.sh removes everything
# with the label LABEL.
set -euo pipefail
cd "$(dirname "$0")"
image=$1 label=$2

docker network create --label "$label" "$label" >/dev/null
start() { docker run --detach --label "$label" --network "$label" "$@" >/dev/null; }
address() { docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
port() { docker port "$1" "$2" | sed 's/.*://'; }

start --name "$label" --network-alias my-kind --privileged -p 127.0.0.1::10080 -p 127.0.0.1::8443 -p 127.0.0.1::2375 "$image"
files=$(port "$label" 10080) api=$(port "$label" 8443) engine=$(port "$label" 2375)
docker cp "$label:/usr/local/bin/kubectl" "${TMPDIR:-/tmp}/$label-kubectl" >/dev/null
trap 'rm -f "${TMPDIR:-/tmp}/$label"-*' EXIT
kubeconfig=${TMPDIR:-/tmp}/$label-kubeconfig
KIND_HOST=127.0.0.1 KIND_PORT=$files KIND_API_PORT=$api ../wait-for-kind.sh --timeout 200 --kubeconfig "$kubeconfig"

# From here, where 8443 is published as another port: with the image's kubectl and any that this machine has.
grep -F ":$api" "$kubeconfig"
kubectls=("${TMPDIR:-/tmp}/$label-kubectl")
# shellcheck disable=SC2206,SC2207 # paths without spaces, separated by them
kubectls+=($(type -p kubectl) ${KUBECTLS:-})
for kubectl in "${kubectls[@]}"; do
  "$kubectl" --kubeconfig "$kubeconfig" get nodes --no-headers
  "$kubectl" --kubeconfig "$kubeconfig" version 2>/dev/null | sed -n 1p
done
python clients.py 127.0.0.1 "$files" "$api" "$engine"
# At the container's own address and ports.
python clients.py "$(address "$label")" 10080 8443 2375

# Scanners read what is in the image.
docker cp "$label:/kind/sbom.cdx.json" "${TMPDIR:-/tmp}/$label-sbom.json" >/dev/null
python sbom.py "${TMPDIR:-/tmp}/$label-sbom.json"

# Node and browsers refuse port 10080.
fetched='fetch(process.argv[1]).then(answer => answer.text()).then(text => console.log(text.split("\n")[0], "by Node"))'
! node -e "$fetched" "http://$(address "$label"):10080/kubernetes-ready" 2>/dev/null || { echo "Node connects to 10080"; exit 1; }
node -e "$fetched" "http://$(address "$label"):10081/kubernetes-ready" | grep -x "ready by Node"

# From another container, by alias.
start --name "$label-job" --entrypoint sleep "$image" 600
docker exec --env KIND_HOST=my-kind "$label-job" wait-for-kind.sh --kubeconfig /kubeconfig
docker exec "$label-job" kubectl --kubeconfig /kubeconfig get nodes --no-headers
docker exec --env DOCKER_HOST=tcp://my-kind:2375 "$label-job" docker version --format 'Docker {{.Server.Version}} answers at my-kind'

# A port set when the container starts is in every kubeconfig that it serves.
docker rm --force --volumes "$label" "$label-job" >/dev/null
start --name "$label" --env KIND_API_PORT=18443 --privileged "$image"
KIND_HOST=$(address "$label") ../wait-for-kind.sh --timeout 200 --kubeconfig "$kubeconfig"
grep -F ":18443" "$kubeconfig"
