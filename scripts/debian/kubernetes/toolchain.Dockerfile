# Kubernetes' source and the Go that compiles it, as Debian 12 has them: the last Debian release with
# the whole of Kubernetes. Also the two ready-made parts of that age, etcd 3.4 and the CNI plugins.
FROM kind-lab/debian:bookworm
RUN sed 's/^deb /deb-src /' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list \
 && apt-get update && apt-get install -y golang-1.19-go golang-github-modern-go-reflect2-dev \
      dpkg-dev etcd-server containernetworking-plugins
RUN mkdir /build && cd /build && apt-get source kubernetes
