#!/usr/bin/env bash
# Makes the bundle that build.sh bakes a cluster from, of the last Kubernetes that Debian has: 1.20.2
# in Debian 12. It is old, and real: what no test double of Kubernetes would ever show.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

version=v1.20.2
recipes=$lab_dir/kubernetes
tools=kind-lab/kubernetes-tools:1
path='ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

bundle=${1:?usage: kubernetes.sh BUNDLE_DIR}
# The compiler's work is kept apart: it takes most of the time.
programs=$cache/lab/kubernetes-$version-$(stamp "$recipes/compile")
recipe=$(stamp "$0" "$lab_dir/debian.sh" "$recipes"/*)
made=$cache/lab/bundle-$version-$recipe

compile() {
  local compile_log=$cache/lab/compile.log
  compiler=$(docker create kind-lab/debian:bookworm nice -n 5 /compile "$version")
  docker cp "$recipes/compile" "$compiler:/compile"
  docker start --attach "$compiler" >"$compile_log" 2>&1 || {
    tail -n 20 "$compile_log" >&2
    die "compiling Kubernetes failed; the end of its output is above, the rest in $compile_log"
  }
  rm -rf "$programs.new"
  docker cp "$compiler:/out" "$programs.new"
  mv "$programs.new" "$programs"
}

# An interrupted script must not leave minutes of work for nobody behind.
clean_up() {
  [ -z "$compiler" ] || docker rm --force "$compiler" >/dev/null
  [ -z "$builder" ] || kill "$builder" 2>/dev/null || true
}

make_tools() {
  "$lab_dir/debian.sh" trixie
  build_image "$tools" tools.Dockerfile "$recipes"
}

# The names are kubeadm's to choose.
name_of() { grep "/$1:" <<<"$names" || die "kubeadm lists no image $1"; }

# save FILE IMAGE CHANGE...: an image of the tar on standard input.
save() {
  local file=$1 image=$2 change changes=(--change "$path")
  shift 2
  for change; do changes+=(--change "$change"); done
  docker import "${changes[@]}" - "$image" >/dev/null
  docker save "$image" >"$made.new/images/$file.tar"
}

tree() { docker run --rm "$tools" tar -C "/trees/$1" -c .; }

program() {
  tar -C "$programs" --owner=0 --group=0 --transform 's|^|usr/local/bin/|' "$@"
}

assemble() {
  local names name
  rm -rf "$made.new"
  mkdir -p "$made.new"/{bin,cni,images}
  cp "$programs"/{kubeadm,kubelet,kubectl} "$made.new/bin/"
  docker run --rm "$tools" tar -C /cni -c . | tar -C "$made.new/cni" -x
  names=$("$programs/kubeadm" config images list --image-repository registry.k8s.io --kubernetes-version "$version")

  for name in kube-apiserver kube-controller-manager kube-scheduler; do
    program --create "$name" | save "$name" "$(name_of "$name")"
  done
  tree kube-proxy >"$made.new/tree"
  program --append --file "$made.new/tree" kube-proxy
  save kube-proxy "$(name_of kube-proxy)" <"$made.new/tree"
  rm "$made.new/tree"
  tree etcd | save etcd "$(name_of etcd)"
  tree pause | save pause "$(name_of pause)" 'ENTRYPOINT ["/pause"]'
  tree coredns | save coredns "$(name_of coredns)" 'ENTRYPOINT ["/coredns"]'
  # The workload of the tests, not Kubernetes' own.
  tree busybox | save busybox kind-lab/busybox:1 'CMD ["sh"]'

  printf '%s\n' "KUBERNETES_VERSION=$version" "ARCH=$(dpkg --print-architecture)" >"$made.new/bundle.env"
  echo "$recipe" >"$made.new/.lab-recipe"
  rm -rf "$made"
  mv "$made.new" "$made"
}

make_bundle() {
  "$lab_dir/debian.sh" bookworm
  mkdir -p "$cache/lab"
  # Taken after the engine is up, which would inherit the lock and keep it.
  exec 9>"$cache/lab/lock"
  flock 9
  trap clean_up EXIT
  # Mostly waiting for downloads, so beside the compiler.
  make_tools &
  builder=$!
  [ -d "$programs" ] || timed "compiling Kubernetes $version (once: the longest step by far)" compile
  wait "$builder"
  builder=''
  [ -d "$made" ] || timed "the bundle's images" assemble
}

hand_over() {
  # Links cost neither time nor space; another file system takes a copy.
  rm -rf "$bundle.new"
  cp -al "$made" "$bundle.new" 2>/dev/null || { rm -rf "$bundle.new"; cp -a "$made" "$bundle.new"; }
  rm -rf "$bundle"
  mv "$bundle.new" "$bundle"
}

compiler='' builder='' bundle=${bundle%/}
if [ "$(cat "$bundle/.lab-recipe" 2>/dev/null)" != "$recipe" ]; then
  [ -e "$bundle/.lab-recipe" ] || [ -z "$(ls -A "$bundle" 2>/dev/null)" ] \
    || die "$bundle is neither a bundle nor empty: choose a directory that is empty or does not exist yet"
  mkdir -p "$(dirname "$bundle")"
  [ -d "$made" ] || make_bundle
  hand_over
fi
log "Kubernetes $version is in $bundle ($(du -sh "$bundle" | cut -f1))"
