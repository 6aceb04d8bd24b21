#!/usr/bin/env bash
# Runs in a container of a baked image in place of the init: discards the baked cluster, uses the image's store as
# the init does, creates a cluster with `kubeadm init`, and waits until every pod is Ready.
set -euo pipefail
version=$(kubeadm version --output short)
root=/var/lib/docker/kind/containerd
minor=${version#v1.} minor=${minor%%.*}

mount --make-rshared /
[ ! -e /sys/fs/cgroup/cgroup.controllers ] || {
  mkdir -p /sys/fs/cgroup/init
  xargs -rn1 </sys/fs/cgroup/cgroup.procs >/sys/fs/cgroup/init/cgroup.procs || true
  sed 's/\([^ ]*\)/+\1/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
}
ip address add 172.99.99.1/32 dev eth0
echo 1 >/proc/sys/net/ipv4/ip_forward
for database in io.containerd.metadata.v1.bolt/meta.db io.containerd.snapshotter.v1.overlayfs/metadata.db; do
  mkdir -p "$root/${database%/*}"
  cp "/kind/store/$database" "$root/$database"
done
for directory in io.containerd.snapshotter.v1.overlayfs/snapshots io.containerd.content.v1.content/blobs/sha256; do
  mkdir -p "$root/$directory"
  ln -s "/kind/store/$directory"/* "$root/$directory/"
done
rm -rf /etc/kubernetes/* /var/lib/etcd/* /var/lib/kubelet/*

restrict=false
echo -999 >/proc/self/oom_score_adj 2>/dev/null || restrict=true
cat >/containerd.toml <<TOML
version = 2
root = "$root"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$(sed -n 's/.*"pauseImage": "\(.*\)".*/\1/p' /kind/cluster.json)"
  restrict_oom_score_adj = $restrict
  tolerate_missing_hugetlb_controller = true
TOML
containerd --config /containerd.toml >/var/log/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.05; done
dockerd --containerd /run/containerd/containerd.sock --containerd-namespace k8s.io >/var/log/dockerd.log 2>&1 &

# kubeadm starts kubelet through systemctl, which does not exist here.
cat >/usr/local/bin/systemctl <<'SH'
#!/usr/bin/env bash
case "$*" in
  *is-active*) exit 0 ;;
  *restart*kubelet* | *start*kubelet*)
    sed -i 's/^cgroupDriver: .*/cgroupDriver: cgroupfs/' /var/lib/kubelet/config.yaml
    printf 'failSwapOn: false\n' >>/var/lib/kubelet/config.yaml
    [ -e /old ] || printf 'failCgroupV1: false\n' >>/var/lib/kubelet/config.yaml
    . /var/lib/kubelet/kubeadm-flags.env
    # shellcheck disable=SC2086
    setsid kubelet --kubeconfig=/etc/kubernetes/kubelet.conf --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
      --config=/var/lib/kubelet/config.yaml $KUBELET_KUBEADM_ARGS --node-ip=172.99.99.1 >/var/log/kubelet.log 2>&1 &
    ;;
esac
SH
[ "$minor" -ge 31 ] || touch /old
[ -e /usr/local/bin/crictl ] || printf '#!/bin/sh\n' >/usr/local/bin/crictl
chmod +x /usr/local/bin/systemctl /usr/local/bin/crictl
# kube-proxy does not start if it cannot set conntrack limits, hence maxPerCore: 0.
kubeadm config print init-defaults --component-configs KubeProxyConfiguration | sed \
  -e "s/advertiseAddress: .*/advertiseAddress: 172.99.99.1/; s/bindPort: 6443/bindPort: 8443/; s/^  name: .*/  name: kind/" \
  -e "s|criSocket: .*|criSocket: unix:///run/containerd/containerd.sock|; s/^kubernetesVersion: .*/kubernetesVersion: $version/" \
  -e "s/^\( *\)serviceSubnet: .*/&\n\1podSubnet: 10.244.0.0\/16/; s/maxPerCore: .*/maxPerCore: 0/" >/kubeadm.yaml
kubeadm_init() {
  kubeadm init "$@" --config /kubeadm.yaml >>/var/log/kubeadm.log 2>&1 || {
    tail -n 20 /var/log/kubeadm.log /var/log/kubelet.log
    exit 1
  }
}
# kube-proxy's health check succeeds when its rules are there.
has_rules() {
  (exec 3<>/dev/tcp/127.0.0.1/10256 && printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3 && grep -q '^HTTP.* 200 ' <&3) 2>/dev/null
}
# All seven pods: etcd, three of the control plane, kube-proxy, and two of CoreDNS.
ready() {
  kubectl --kubeconfig /etc/kubernetes/admin.conf --namespace kube-system get pods --no-headers 2>/dev/null \
    | awk '{ split($2, of, "/"); pods++; ready += of[1] == of[2] } END { exit !(pods >= 7 && ready == pods) }'
}

kubeadm_init --ignore-preflight-errors all --skip-phases preflight,addon/coredns
# kube-proxy's rules first. With a network that is there from the beginning, CoreDNS can be faster than they are, and then tries
# for half a minute to reach the API server: no cluster of kubeadm's has that, since its network comes after kube-proxy.
until has_rules; do sleep 0.1; done
kubeadm_init phase addon coredns
until ready; do sleep 0.1; done
