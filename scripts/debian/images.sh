#!/usr/bin/env bash
# Makes stand-ins for the Docker Hub images that the project is built from, for machines that reach a
# Debian mirror but no registry: kind-lab/debian:SUITE, kind-lab/docker:SUITE-dind and kind-lab/rust:1.
# Trixie and sid have two generations of Docker and containerd.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

suite=${1:-trixie}
case $suite in
  trixie | sid) ;;
  *) die "there are no stand-ins for '$suite': use trixie or sid" ;;
esac

# What build.sh downloads CRIU with.
need curl:curl /etc/ssl/certs/ca-certificates.crt:ca-certificates
started=$SECONDS
"$lab_dir/debian.sh" "$suite"
build_image "kind-lab/docker:$suite-dind" docker.Dockerfile "$lab_dir/images" --build-arg "SUITE=$suite"
[ "$suite" = trixie ] || "$lab_dir/debian.sh" trixie
build_image kind-lab/rust:1 rust.Dockerfile "$lab_dir/images"
log "the $suite images are ready after $((SECONDS - started)) s"
