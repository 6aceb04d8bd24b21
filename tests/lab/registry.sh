#!/usr/bin/env bash
# Builds kind-lab/registry:1, a registry for the tests; registry/serve says how to run it.
set -euo pipefail
. "$(dirname "$0")/../../scripts/debian/lib.sh"
log() { echo "registry: $*" >&2; }

"$lab_dir/debian.sh" trixie
build_image kind-lab/registry:1 Dockerfile "$(dirname "$0")/registry"
log "kind-lab/registry:1 is ready"
