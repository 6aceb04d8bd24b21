#!/bin/sh
# What makefiles and scripts call that were written for kubernetes-sigs/kind, whose program has the same name: `kind get`,
# `load`, `create`, `delete` and `export`, answered for the one cluster that there is. In a job's container it is that of
# the node that DOCKER_HOST or KIND_HOST names (wait-for-kind.sh).
set -eu

say() { echo "kind: $*" >&2; }
die() { say "$*"; exit 1; }
unknown() { die "this kind is not kubernetes-sigs/kind and has no '$*'. docs/coming-from.md says what to do instead"; }

command="${1:-} ${2:-}"
shift $(($# < 2 ? $# : 2))
name=kind kubeconfig=''
# The arguments that are no flags, one per line.
rest=''
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --kubeconfig=*) kubeconfig=${1#*=} ;;
    -n | --name) name=${2:-} && shift $(($# > 1)) ;;
    --kubeconfig) kubeconfig=${2:-} && shift $(($# > 1)) ;;
    --image | --config | --nodes | --wait | -v | --verbosity) shift $(($# > 1)) ;;
    -*) ;;
    *) rest=$rest$1'
' ;;
  esac
  shift
done

# Writes a kubeconfig whose context is named as the other kind names it, beside what the file has already.
write_kubeconfig() {
  file=${kubeconfig:-${KUBECONFIG:-$HOME/.kube/config}}
  file=${file%%:*}
  case $file in */*) mkdir -p "${file%/*}/" ;; esac
  wait-for-kind.sh --kubeconfig "$file.new" --name "kind-$name"
  if [ -s "$file" ]; then
    # The first file's current context counts.
    KUBECONFIG=$file.new:$file kubectl config view --flatten >"$file.merged"
    mv "$file.merged" "$file.new"
  fi
  mv "$file.new" "$file"
  say "the context kind-$name is in $file"
}

case $command in
  'get clusters')
    if wait-for-kind.sh docker --timeout 30; then echo kind; fi
    ;;
  'get nodes') echo kind ;;
  'get kubeconfig')
    file=$(mktemp)
    trap 'rm -f "$file"' EXIT
    wait-for-kind.sh --kubeconfig "$file" --name "kind-$name"
    cat "$file"
    ;;
  'export kubeconfig') write_kubeconfig ;;
  'export logs')
    directory=$(echo "$rest" | head -n 1)
    wait-for-kind.sh --logs "${directory:-kind-logs}"
    ;;
  'create cluster')
    write_kubeconfig
    say "the cluster was there already: it is baked into the image, and the same whatever --name, --image and --config say"
    ;;
  'delete cluster' | 'delete clusters')
    say "nothing is deleted: the cluster ends with its container. wait-for-kind.sh --reset makes it as it was baked"
    ;;
  'load docker-image')
    [ -n "$rest" ] || die "which image? kind load docker-image IMAGE..."
    # An image that was built on the node's Docker is where pods look for it.
    echo "$rest" | while read -r image; do
      [ -z "$image" ] || docker image inspect "$image" >/dev/null \
        || die "$image is not on the Docker that DOCKER_HOST names: build it there, or use docker save and docker load"
    done
    ;;
  'load image-archive') echo "$rest" | while read -r file; do [ -z "$file" ] || docker load --input "$file"; done ;;
  *) unknown "$command" ;;
esac
