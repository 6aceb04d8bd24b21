# Two images for build.sh: the node that a cluster is baked into, and the toolchain that compiles the init.
# Whole names, because podman knows no short ones.
ARG DOCKER_IMAGE=docker.io/library/docker:29-dind
ARG DEBIAN_IMAGE=docker.io/library/debian:trixie-slim
ARG RUST_IMAGE=docker.io/library/rust:1-slim-trixie

FROM ${DOCKER_IMAGE} AS docker

# Debian's userland, because official kubelet binaries are linked to glibc; Docker's own are static.
FROM ${DEBIAN_IMAGE} AS node
# Marks what the legacy builder keeps of a failed build (docs/build.md). Finished images say "image".
LABEL kind.stage=build
ARG DEBIAN_MIRROR
# A word that has the packages installed anew where the engine has them in its cache, such as the day.
ARG KIND_FRESH
# In an older userland, openssl cannot sign kubeadm's certificates again, and crun refuses what containerd 2 asks of it.
RUN if [ -n "$DEBIAN_MIRROR" ]; then sed -i "s|http://deb.debian.org|$DEBIAN_MIRROR|" /etc/apt/sources.list.d/* /etc/apt/sources.list 2>/dev/null; fi \
 ; apt-get update \
 && apt-get install --yes --no-install-recommends \
    bash ca-certificates conntrack crun ethtool iproute2 iptables kmod mount openssl pigz procps socat xz-utils \
 && rm -rf /var/lib/apt/lists/* \
 && { openssl x509 -help 2>&1 | grep -q -e -not_before \
  || { echo "DEBIAN_IMAGE is too old: its openssl has no -not_before (OpenSSL 3.4); Debian 13 or newer is needed" >&2; exit 1; }; }
COPY --from=docker /usr/local/bin/ /usr/local/bin/
COPY --from=docker /usr/local/libexec/ /usr/local/libexec/
# Where jobs name dind's entrypoint, they get ours.
RUN printf '#!/bin/sh\nexec kind run "$@"\n' >/usr/local/bin/dockerd-entrypoint.sh && chmod +x /usr/local/bin/dockerd-entrypoint.sh
ENV DOCKER_TLS_CERTDIR="" KUBECONFIG=/etc/kubernetes/admin.conf
VOLUME /var/lib/docker
# Of the first two one is open, as in docker:dind, which exposes both.
EXPOSE 2375 2376 8443 10080 10081
STOPSIGNAL SIGTERM
# scripts/engine.sh adds a start interval, which an older engine refuses.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s CMD ["kind", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/kind", "run"]
CMD []

# The init, as a static binary: it runs on glibc, musl and scratch images alike.
FROM ${RUST_IMAGE} AS init
LABEL kind.stage=build
WORKDIR /src
ENV RUSTFLAGS="-C target-feature=+crt-static"
# Cargo.toml, Cargo.lock, vendored crates if there are any, and the certificates of the build machine, for
# networks whose proxy has a CA of its own.
COPY dependencies ./
RUN echo 'export CARGO_HTTP_CAINFO=/src/ca.crt; [ -s /src/ca.crt ] || unset CARGO_HTTP_CAINFO; cargo build --release --locked --target "$(rustc -vV | sed -n "s/^host: //p")"' > /build \
 && mkdir src && echo 'fn main() {}' > src/main.rs && sh /build
COPY code ./
RUN touch src/main.rs && sh /build && cp target/*/release/kind /kind
