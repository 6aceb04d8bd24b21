#!/bin/sh
# Collects what explains a node, and writes it to stdout as a compressed tar archive. `kind logs` runs it, with the
# passwords that must not be in it on stdin, one per line, so that no argument and no variable holds one, and its version.
# It goes as far as it can: a program that is missing or fails costs only its own file.
# shellcheck disable=SC2086 # $kubectl and the like are a command and its arguments
set -u
umask 077
secrets=$(cat)
# Bytes: the end of each file, and of the logs of all pods together, the newest first.
most=1048576 most_of_pods=16777216
# Seconds: for each command, and for describing pods that are not Ready.
limit=20 limit_of_pods=30
# A job's variables may name another cluster and another Docker.
kubectl="kubectl --kubeconfig=/etc/kubernetes/admin.conf --request-timeout=10s"
docker="docker --host unix:///var/run/docker.sock"

# In memory, because a full disk may be what the logs are to explain.
here=$(mktemp -d /dev/shm/kind-logs.XXXXXX 2>/dev/null) || here=$(mktemp -d) || exit 1
trap 'rm -rf "$here" "$here.clean"' EXIT
trap 'exit 1' HUP INT TERM PIPE
mkdir "$here/cluster" "$here/docker" "$here/node" "$here/pods"

# keep_end FILE: the end of stdin, in whole lines: a piece of a password would not be found.
keep_end() {
  tail -c $most >"$here/$1"
  [ "$(wc -c <"$here/$1")" -lt $most ] || sed -i 1d "$here/$1"
}

# keep FILE COMMAND...: what a command says, errors too.
keep() {
  file=$1
  shift
  { timeout $limit "$@" </dev/null 2>&1 || echo "(ended with status $?)"; } | keep_end "$file"
}

for file in docker-ready kubernetes-ready failed waiting timeline status.json; do
  [ ! -f "/var/kind/$file" ] || cp "/var/kind/$file" "$here/"
done
for log in /var/log/kind/*.log; do
  [ ! -f "$log" ] || keep_end "${log##*/}" <"$log"
done

# As in /var/log/pods: NAMESPACE_NAME_UID/CONTAINER/N.log
room=$most_of_pods
for log in $(cd /var/log/pods 2>/dev/null && ls -t -- */*/*.log */*/*.log.[0-9]* 2>/dev/null); do
  # What kubelet has rotated, but not what it has compressed.
  case $log in *.gz) continue ;; esac
  [ "$room" -gt 0 ] || break
  mkdir -p "$here/pods/${log%/*}"
  keep_end "pods/$log" <"/var/log/pods/$log"
  room=$((room - $(wc -c <"$here/pods/$log")))
done

# What `kubectl describe` says, without the values of environment variables, which may be passwords.
without_values() {
  awk '/^    Environment:/ { print; inside = 1; next }
    inside && /^    [^ ]/ { inside = 0 }
    inside && /^      [^ :]+:/ { sub(/:.*/, ": (left out)"); print }
    !inside { print }'
}
# shellcheck disable=SC2016 # Go's template has variables too
not_ready='{{range .items}}{{$ready := false}}{{range .status.conditions}}{{if eq .type "Ready"}}{{$ready = eq .status "True"}}{{end}}{{end}}{{if not $ready}}{{.metadata.namespace}} {{.metadata.name}}
{{end}}{{end}}'
describe_pods() {
  end=$(($(date +%s) + limit_of_pods))
  # A pod that has completed is not Ready either, and needs no explanation.
  timeout $limit $kubectl get pods --all-namespaces --field-selector=status.phase!=Succeeded --output=go-template="$not_ready" \
    | while read -r namespace name && [ "$(date +%s)" -lt "$end" ]; do
      timeout $limit $kubectl describe pod --namespace="$namespace" "$name" </dev/null 2>&1 | without_values
    done
}
if [ ! -f /etc/kubernetes/admin.conf ]; then
  rmdir "$here/cluster" "$here/pods"
elif ! timeout $limit $kubectl get --raw /livez >/dev/null 2>&1; then
  echo "the API server does not answer" >"$here/cluster/no-answer.txt"
else
  keep cluster/version.txt $kubectl version
  keep cluster/nodes.txt $kubectl describe nodes
  keep cluster/events.txt $kubectl get events --all-namespaces --sort-by=.metadata.creationTimestamp
  keep cluster/objects.txt $kubectl get --all-namespaces --output=wide \
    pods,deployments,statefulsets,daemonsets,jobs,cronjobs,services,ingresses,persistentvolumeclaims,persistentvolumes,storageclasses
  describe_pods | keep_end cluster/pods-not-ready.txt
fi

keep docker/version.txt $docker version
if grep -q '^Server' "$here/docker/version.txt"; then
  keep docker/info.txt $docker info
  # Without their commands, which may have passwords.
  keep docker/containers.txt $docker ps --all --format='table {{.ID}}\t{{.Image}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}'
  keep docker/images.txt $docker images
fi

keep node/kind.txt echo "kind $1"
keep node/system.txt uname -a
keep node/disks.txt df -h
keep node/inodes.txt df -i
keep node/memory.txt cat /proc/meminfo
# Without their arguments, for the same reason.
keep node/processes.txt ps -eo pid,ppid,stat,rss,time,comm
keep node/addresses.txt ip address
keep node/routes.txt ip route

# A file that cannot be written anew is empty.
if [ -n "$secrets" ]; then
  printf '%s\n' "$secrets" | grep -rlFf - "$here" | while IFS= read -r file; do
    printf '%s\n' "$secrets" | awk 'NR == FNR { secrets[NR] = $0; count = NR; next }
      { for (number = 1; number <= count; number++) {
          rest = $0; $0 = ""
          while (at = index(rest, secrets[number])) {
            $0 = $0 substr(rest, 1, at - 1) "(left out)"
            rest = substr(rest, at + length(secrets[number]))
          }
          $0 = $0 rest
        }
        print }' - "$file" >"$here.clean" || : >"$here.clean"
    mv "$here.clean" "$file" || rm -f "$file"
  done
fi

tar -C "$here" -czf - .
