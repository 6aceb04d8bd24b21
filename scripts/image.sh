# shellcheck shell=bash
# Builds the Dockerfile's two images, and runs the bake in a container. Sourced by build.sh, never run.

# choose_images: sets $docker_image, $debian_image and $build_args, which say what the Dockerfile is built from.
choose_images() {
  local name
  docker_image=${DOCKER_IMAGE:-29-dind}
  case $docker_image in *[:/]*) ;; *) docker_image=docker.io/library/docker:$docker_image ;; esac
  build_args=(--build-arg "DOCKER_IMAGE=$docker_image")
  debian_image=${DEBIAN_IMAGE:-$(sed -n 's/^ARG DEBIAN_IMAGE=//p' "$here/Dockerfile")}
  for name in DEBIAN_IMAGE DEBIAN_MIRROR RUST_IMAGE KIND_FRESH; do
    [ -z "${!name:-}" ] || build_args+=(--build-arg "$name=${!name}")
  done
  for name in http_proxy https_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY; do
    case ${!name:-} in
      '') ;;
      *localhost:* | *127.0.0.1:* | *'[::1]:'*) say "$name is ignored: containers cannot reach this machine's loopback" ;;
      *)
        # Passed by name, so that a password in it is in no process list.
        export "${name?}"
        build_args+=(--build-arg "$name")
        pass+=(--env "$name")
        ;;
    esac
  done
}

# build_stage STAGE TAG CONTEXT [OPTION]...: builds one stage of the Dockerfile; the context is that file or an archive.
build_stage() {
  local stage=$1 tag=$2 context=$3 began=$SECONDS tries=1
  shift 3
  temporary_images+=("$tag")
  # Built by this engine, even if the user has chosen another builder, and as an image rather than an index
  # with attestations. The legacy builder would leave the container of a failed step behind.
  until attend env -u BUILDX_BUILDER BUILDX_NO_DEFAULT_ATTESTATIONS=1 \
    "$docker" build ${build_options[@]+"${build_options[@]}"} "${build_args[@]}" "$@" --force-rm --target "$stage" --tag "$tag" - \
    <"$context" >"$work/log" 2>&1; do
    # With the legacy builder, another build that ends may have removed a step that both had in common.
    if [ "$tries" -le 3 ] && grep -qE 'unknown parent image|No such image' "$work/log"; then
      tries=$((tries + 1))
      continue
    fi
    cat "$work/log" >&2
    # A registry that was not reached, in the words of Go's clients; one that answers no says so in other words.
    ! grep -qE '(Get|Head) "?https?://[^ ]+: ' "$work/log" \
      || say "without that registry: DOCKER_IMAGE, DEBIAN_IMAGE and RUST_IMAGE name images elsewhere, and IMAGE_REGISTRY a mirror of Kubernetes'; --bundle builds from a bundle, and --debian from Debian packages alone"
    die "$docker build of the $stage image failed; its output is above"
  done
  say "$stage image built in $((SECONDS - began)) s"
}

# make_node BUNDLE: sets $node to the name of the node's image.
make_node() {
  local loaded digest labels=(--label "org.opencontainers.image.base.name=$debian_image")
  node=kind-build:$id-node
  if [ -f "$1/node.tar" ]; then
    begin "loading the node's image"
    for _ in 1 2 3; do
      attend "$docker" load --quiet --input "$1/node.tar" >"$work/loaded" || die "$1/node.tar cannot be loaded; the reason is above"
      loaded=$(sed -n 's/^Loaded image: //p' "$work/loaded")
      temporary_images+=("$loaded" "$node")
      # Another build from the same bundle may just have removed that name, at its end.
      ! "$docker" tag "$loaded" "$node" 2>"$work/log" || return 0
    done
    die "the node's image is loaded, but has no name: $(tail -n 1 "$work/log")"
  fi
  begin "building the node's image (Docker from $docker_image)"
  # Known of an image that was pulled, not of one that BuildKit reads from a registry by itself.
  digest=$(digest_of_base "$debian_image")
  [ "${digest#*@}" = "$digest" ] || labels+=(--label "org.opencontainers.image.base.digest=${digest#*@}")
  build_stage node "$node" "$here/Dockerfile" "${labels[@]}"
}

# make_init BUNDLE: sets $init to the path of the init's binary. Binaries are cached by their sources.
make_init() {
  local tag=kind-build:$id-init context=$work/context name
  init=${KIND_INIT:-}
  [ -n "$init" ] || [ ! -f "$1/kind" ] || init=$1/kind
  [ -z "$init" ] || return 0
  mkdir -p "$context"/{dependencies,code}
  cp "$here"/{Cargo.toml,Cargo.lock} "$context/dependencies/"
  for name in vendor .cargo; do [ ! -d "$here/$name" ] || cp -R "$here/$name" "$context/dependencies/"; done
  cp -R "$here"/{src,wait-for-kind.sh} "$context/code/"
  cp "$here/Dockerfile" "$context/"
  if [ -n "${CRATES_MIRROR:-}" ]; then
    mkdir -p "$context/dependencies/.cargo"
    printf '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\nregistry = "%s"\n' "$CRATES_MIRROR" \
      >>"$context/dependencies/.cargo/config.toml"
  fi
  init=$cache/init/$arch-$(cd "$context" && { echo "${RUST_IMAGE:-}"; find . -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat; } | sha256 | cut -c 1-16)
  [ ! -f "$init" ] || return 0
  # The certificates of the build machine, for networks whose proxy has a CA of its own.
  cat /etc/ssl/certs/ca-certificates.crt >"$context/dependencies/ca.crt" 2>/dev/null || : >"$context/dependencies/ca.crt"
  begin "compiling the init"
  tar -c -C "$context" . >"$work/context.tar"
  build_stage init "$tag" "$work/context.tar"
  outlast "$docker" create --label "kind.build=$id" --name "$id-init" "$tag" >/dev/null
  "$docker" cp "$id-init:/kind" "$work/kind" >/dev/null
  keep "$work/kind" "$init"
}

# Starts the container to bake in. The client adds its configured proxies to every container, and a commit
# would keep them with their passwords: so they are passed to `docker exec` instead.
start_container() {
  local node=$1 setting
  blank=(--label "kind.build=$id")
  container=$id
  run_container() {
    # The container ends by itself even if this script is killed.
    # docker-init is the image's own, because not every engine has one.
    outlast "$docker" run --detach --rm --privileged ${bake_options[@]+"${bake_options[@]}"} --name "$container" \
      "${blank[@]}" --entrypoint docker-init "$node" -- sleep 10800 >/dev/null || die "the engine cannot run a privileged container; the reason is above"
  }
  run_container
  while IFS= read -r setting; do
    blank+=(--env "${setting%%=*}=")
    export "${setting?}"
    pass+=(--env "${setting%%=*}")
  done < <("$docker" container inspect --format '{{range .Config.Env}}{{println .}}{{end}}' "$container" | grep -iE '^[a-z]+_proxy=.')
  [ ${#blank[@]} -gt 2 ] || return 0
  "$docker" rm --force --volumes "$container" >/dev/null
  run_container
}

# bake BUNDLE NODE_IMAGE INIT [OPTION...]: leaves a container with a cluster in it, named $container.
bake() {
  local directory=$1 node=$2 init=$3 part hook
  shift 3
  begin "starting a container to bake in"
  start_container "$node"
  "$docker" exec "$container" mkdir -p /hooks /var/lib/docker/bundle
  "$docker" cp "$init" "$container:/usr/local/bin/kind" >/dev/null
  "$docker" cp "$hooks/." "$container:/hooks" >/dev/null
  # As with the first kind: scripts next to build.sh, which pipelines append to before they build.
  for hook in before-cluster.sh after-cluster.sh; do
    [ -n "${KIND_HOOKS:-}" ] || [ ! -f "$here/$hook" ] || "$docker" cp "$here/$hook" "$container:/hooks/root-$hook" >/dev/null
  done
  [ ! -f "$images" ] || "$docker" cp "$images" "$container:/images.sh" >/dev/null
  [ -z "${KIND_KUBEADM:-}" ] || "$docker" cp "$KIND_KUBEADM" "$container:/hooks/kubeadm.yaml" >/dev/null
  begin "copying the bundle into it"
  # Copied onto the volume, which the commit leaves out.
  for part in bundle.env bin cni images manifests criu; do
    [ ! -e "$directory/$part" ] || attend "$docker" cp "$directory/$part" "$container:/var/lib/docker/bundle/" >/dev/null
  done
  begin "baking Kubernetes $version"
  attend "$docker" exec "${pass[@]}" "$container" \
    kind bake --bundle /var/lib/docker/bundle "$@" || die "the bake failed; the reason is above"
}

# commit NAME...: commits the baked container as an image, without this build's labels. Each commit makes a layer: the
# first has the container's, and the others have what `kind bake` has set apart on its volume (src/bake/layers.rs).
commit() {
  local name label labels=() layer layers began=$SECONDS temporary=kind-build:$id apart=/var/lib/docker/kind/layers
  begin "committing $1"
  temporary_images+=("$temporary")
  while IFS= read -r label; do
    # Quoted as both engines read it, and one by one, because podman takes the rest of a line for the value.
    labels+=(--change "LABEL \"${label%%=*}\"=\"${label#*=}\"")
  done < <(image_labels)
  commit_one() {
    outlast "$docker" commit ${commit_options[@]+"${commit_options[@]}"} \
      --change 'ENTRYPOINT ["/usr/local/bin/kind", "run"]' --change 'CMD []' "${labels[@]}" \
      "$1" "$temporary" >/dev/null 2>"$work/log"
  }
  add_layer() {
    attend "$docker" run --name "$id-$1" --volumes-from "$container" ${bake_options[@]+"${bake_options[@]}"} "${blank[@]}" \
      --entrypoint cp "$temporary" -a "$apart/$1/." /kind/store/ >/dev/null 2>"$work/log" && commit_one "$id-$1" \
      && "$docker" rm --force "$id-$1" >/dev/null
  }
  if ! commit_one "$container" || ! layers=$("$docker" exec "$container" ls "$apart" 2>"$work/log"); then
    cat "$work/log" >&2
    die "$1 cannot be committed; the reason is above"
  fi
  for layer in $layers; do
    add_layer "$layer" || { cat "$work/log" >&2; die "layer $layer of $1 cannot be committed; the reason is above"; }
  done
  for name; do "$docker" tag "$temporary" "$name"; done
  say "$* committed in $((SECONDS - began)) s: $("$docker" image inspect --format '{{.Size}}' "$temporary" | awk '{printf "%.0f MB", $1 / 1e6}')"
}
