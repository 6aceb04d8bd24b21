# What docker:dind holds, from Debian's packages: the binaries in /usr/local/bin and no more, so that
# a recipe written for the official image works on this one. iptables is for those who run it as it is.
ARG SUITE
FROM kind-lab/debian:$SUITE AS packages
RUN apt-get update && apt-get install -y docker.io docker-cli docker-buildx containerd runc
RUN mkdir -p /dind/usr/local/bin /dind/usr/local/libexec/docker/cli-plugins \
 && for name in docker dockerd docker-init docker-proxy containerd containerd-shim-runc-v2 ctr runc; do \
      cp -L "$(command -v "$name")" /dind/usr/local/bin/ || exit 1; \
    done \
 && cp -L /usr/libexec/docker/cli-plugins/docker-buildx /dind/usr/local/libexec/docker/cli-plugins/

FROM kind-lab/debian:$SUITE
RUN apt-get update && apt-get install -y iptables && rm -rf /var/lib/apt/lists/*
COPY --from=packages /dind /
ENV DOCKER_TLS_CERTDIR=/certs
VOLUME /var/lib/docker
EXPOSE 2375 2376
CMD ["dockerd"]
