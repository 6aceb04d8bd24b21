# shellcheck shell=bash
# What an image is made from, in its labels and for scripts/release.sh. Sourced by build.sh, never run.

# digest_of_base IMAGE: prints NAME@DIGEST of an image that came from a registry, the ID of another one that is here, or
# nothing.
digest_of_base() {
  { "$docker" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}{{.Id}}' "$1" 2>/dev/null || true; } | sed -n 1p
}

# print_contents BUNDLE: prints what changes without a commit: the base images, and Debian's packages as they are today.
print_contents() {
  local image before
  for image in "$docker_image" "$debian_image"; do
    before=$(digest_of_base "$image")
    # One without a digest of a registry was built here.
    case $before in
      '' | *@*) attend "$docker" pull --quiet "$image" >/dev/null || die "$image cannot be pulled; the reason is above" ;;
    esac
    printf '%s %s\n' "$image" "$(digest_of_base "$image")"
  done
  make_node "$1"
  outlast "$docker" run --rm --entrypoint dpkg-query "$node" --show
}

# image_labels: prints the labels of an image, one a line.
image_labels() {
  local name=org.opencontainers.image revision remote
  printf '%s\n' kind.stage=image kind.build= "$name.title=kind" "$name.version=$version" "$name.created=$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
    "$name.description=Docker and a single-node Kubernetes cluster in one container, for CI" \
    "$name.licenses=(MIT OR Apache-2.0) AND Apache-2.0 AND GPL-2.0-only AND GPL-3.0-or-later AND LGPL-2.1-or-later"
  # Not those of a repository that this directory is a part of.
  [ -e "$here/.git" ] && revision=$(git -C "$here" rev-parse HEAD 2>/dev/null) || return 0
  [ -z "$(git -C "$here" status --porcelain 2>/dev/null)" ] || revision+=-dirty
  printf '%s\n' "$name.revision=$revision"
  # Without a user or a password; and no path of this machine.
  remote=$(git -C "$here" remote get-url origin 2>/dev/null | sed -nE 's#^(https://)([^/@]*@)?([^@]+)$#\1\3#; s#^git@([^:/]+):#https://\1/#; s#\.git$##; /^https:/p') || true
  [ -z "$remote" ] || printf '%s\n' "$name.source=$remote"
}
