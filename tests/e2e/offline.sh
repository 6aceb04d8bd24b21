#!/usr/bin/env bash
# offline.sh BUNDLE: bakes and starts an image from a bundle, and does with it what a job does. To be run
# by tests/lab/offline.sh, where there is no network.
set -euo pipefail
cd "$(dirname "$0")/../.."
bundle=${1:?usage: offline.sh BUNDLE}
image=kind:offline

! curl --silent --max-time 5 --output /dev/null http://deb.debian.org || { echo "this machine has a network" >&2; exit 1; }
KIND_HOOKS=tests/e2e/hooks KIND_IMAGES=tests/e2e/images.sh ./build.sh --bundle "$bundle" --run --env KIND_TEST_SECRET "$image"
docker rm --force --volumes kind >/dev/null
# release:: searches an image that was baked from a bundle for secrets, which takes as long as all of this.
KIND_IMAGE=$image cargo test --locked --offline --test e2e -- --ignored --test-threads=1 baked:: workloads:: --skip baked::the_image_keeps_neither
