#!/usr/bin/env bash
# Makes kind-lab/registry:1, a registry for the tests (registry/serve tells how it is run).
set -euo pipefail
. "$(dirname "$0")/../../scripts/debian/lib.sh"

"$lab_dir/debian.sh" trixie
build_image kind-lab/registry:1 Dockerfile "$(dirname "$0")/registry"
log "kind-lab/registry:1 is there"
