#!/usr/bin/env bash
# What cgroup2.sh tries, inside its machine: a job's main steps with IMAGE, a line for each on stdout. Seconds are those
# of the machine's clock. RESTORED is --restored, or empty. The last line says whether every check passed.
set -uo pipefail
stty -F /dev/ttyS1 raw
cd /lab || exit
failed=0

fact() { printf '        %-18s %s\n' "$1" "$2"; }

# check WHAT COMMAND...: fails if the command does, and shows the end of what it said.
check() {
  local what=$1 start=$SECONDS output verdict=ok
  shift
  output=$("$@" 2>&1) || verdict=FAILED failed=$((failed + 1))
  printf '%-7s %s (%d s)\n' "$verdict" "$what" $((SECONDS - start))
  [ "$verdict" = ok ] || tail -n 15 <<<"$output" | sed 's/^/          /'
  [ "$verdict" = ok ]
}

# is WANTED COMMAND...: a command succeeds and prints exactly this.
is() {
  local wanted=$1 got
  got=$("${@:2}") || { echo "$got"; return 1; }
  [ "$got" = "$wanted" ] || { echo "it is '$got', not '$wanted'"; return 1; }
}

inside() { docker exec -i kind "$@"; }
kubectl() { inside kubectl "$@"; }

# What /proc says of a process that may do everything that this kernel knows.
all_capabilities() { printf 'CapBnd:\t%016x\n' $(((1 << ($(cat /proc/sys/kernel/cap_last_cap) + 1)) - 1)); }

# The container's cgroup hands these on to pods.
controllers() {
  local given name
  given=$(inside cat /sys/fs/cgroup/cgroup.subtree_control) || return
  for name in cpuset cpu io memory pids; do [[ " $given " == *" $name "* ]] || { echo "$name is not in: $given"; return 1; }; done
}

ready() {
  KIND_HOST=$(docker inspect --format '{{.NetworkSettings.IPAddress}}' kind) ./wait-for-kind.sh "$1"
}

# The engine asks every five seconds.
healthy() {
  local _ said
  for _ in $(seq 60); do
    ! said=$(is healthy docker inspect --format '{{.State.Health.Status}}' kind 2>&1) || return 0
    sleep 1
  done
  echo "$said"
  return 1
}

control_plane() { inside kind status 2>&1 | sed -n 's/^control plane *//p'; }
is_restored() { control_plane | grep '^restored'; }

build() { inside docker build --tag app:1 - <<<$'FROM kind-lab/busybox:1\nRUN echo made in the build >/made'; }

pod() {
  kubectl apply --filename - <<'TEXT' && kubectl wait --for=condition=Ready pod/app --timeout=120s
apiVersion: v1
kind: Pod
metadata: { name: app }
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - { name: app, image: 'app:1', command: [sleep, '86400'], resources: { limits: { memory: 64Mi, cpu: 500m } } }
TEXT
}

in_pod() { kubectl exec app -- "$@"; }
no_pods() { is '' kubectl get pods --output=name; }

fact kernel "$(uname -sr)"
fact "cgroup version" "$(docker info --format '{{.CgroupVersion}}, driver {{.CgroupDriver}}')"
fact "CPU" "$(sed -n 's/^model name\s*: //p;T;q' /proc/cpuinfo)"
fact engine "$(docker version --format '{{.Server.Version}}')"
check "the machine has cgroup v2 alone" is cgroup2fs stat --file-system --format %T /sys/fs/cgroup
check "the machine has every capability" is "$(all_capabilities)" grep CapBnd /proc/self/status
began=$SECONDS
if check "docker run" docker run --detach --privileged --name kind "$IMAGE"; then
  check "docker-ready" ready docker && fact docker-ready "after $((SECONDS - began)) s"
  check "kubernetes-ready" ready kubernetes && fact kubernetes-ready "after $((SECONDS - began)) s"
  fact "control plane" "$(control_plane)"
  [ -z "$RESTORED" ] || check "the control plane is restored" is_restored
  check "it is healthy" healthy
  check "the container has cgroup v2 alone" is cgroup2fs inside stat --file-system --format %T /sys/fs/cgroup
  check "the container has every capability" is "$(all_capabilities)" inside grep CapBnd /proc/1/status
  check "pods have every controller" controllers
  check "docker build" build
  check "a pod of what was built is Ready" pod
  check "it is what was built" is "made in the build" in_pod cat /made
  check "its limit of memory is its cgroup's" is 67108864 in_pod cat /sys/fs/cgroup/memory.max
  check "its limit of CPU is its cgroup's" is "50000 100000" in_pod cat /sys/fs/cgroup/cpu.max
  check "docker stop" docker stop kind
  check "it ended with 0" is 0 docker inspect --format '{{.State.ExitCode}}' kind
  check "docker start" docker start kind
  check "kubernetes-ready again" ready kubernetes && fact "control plane" "$(control_plane)"
  check "the cluster is the baked one again" no_pods
fi
if [ "$failed" = 0 ]; then
  echo "every check passed"
else
  docker logs kind 2>&1 | tail -n 40 | sed 's/^/kind: /'
  echo "$failed checks failed"
fi
