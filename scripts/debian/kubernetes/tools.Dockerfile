# The two ready-made parts of Kubernetes' age, etcd 3.4 and the CNI plugins.
FROM kind-lab/debian:bookworm AS parts
RUN apt-get update && apt-get install -y etcd-client etcd-server containernetworking-plugins

# The file trees under /trees become images: programs with just the libraries they are linked to, as
# every image of the bundle carries its own copy of whatever it is built on. Debian 13, because
# kube-proxy's iptables must understand what the node's, which is as new, has written.
FROM kind-lab/debian:trixie
RUN apt-get update && apt-get install -y busybox-static conntrack dnsmasq-base gcc iptables libc6-dev
COPY tree pause.c choose-iptables coredns /lab/
COPY --from=parts /usr/bin/etcd /usr/bin/etcdctl /usr/local/bin/
COPY --from=parts /usr/lib/cni/bridge /usr/lib/cni/host-local /usr/lib/cni/portmap /usr/lib/cni/loopback /cni/

RUN /lab/tree busybox && chmod 1777 /trees/busybox/tmp

RUN mkdir -p /trees/pause && gcc -Os -static -s -o /trees/pause/pause /lab/pause.c

RUN /lab/tree etcd /usr/local/bin/etcd /usr/local/bin/etcdctl

RUN /lab/tree coredns /usr/sbin/dnsmasq && cp /lab/coredns /trees/coredns/ \
 && mkdir /trees/coredns/www && touch /trees/coredns/www/health /trees/coredns/www/ready

# Not linked to, but loaded by name: the extensions that rules are written with.
RUN /lab/tree kube-proxy /usr/sbin/conntrack /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi \
      /usr/lib/*/xtables/*.so /etc/protocols /etc/services \
 && cp /lab/choose-iptables /trees/kube-proxy/usr/sbin/ \
 && cd /trees/kube-proxy/usr/sbin \
 && for family in iptables ip6tables; do for verb in '' -save -restore; do \
      ln -s choose-iptables "$family$verb"; \
      ln -s xtables-legacy-multi "$family-legacy$verb"; \
      ln -s xtables-nft-multi "$family-nft$verb"; \
    done; done
