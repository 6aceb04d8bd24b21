# shellcheck shell=bash
# Which Kubernetes a build bakes. Sourced by build.sh and scripts/release.sh, never run.

: "${KUBERNETES_URL:=https://dl.k8s.io/release}"

# known [MINOR]: prints the newest patch release that this checkout knows, such as v1.36.5 for 1.36.
known() { awk -v minor="v${1:-1}." 'index($1, minor) == 1 { print $1; exit }' "$here/scripts/versions"; }

# supported: prints the supported minors, newest first, without Debian's.
supported() { sed -n '/^# Debian/,$d; s/^v\(1\.[0-9]*\)\..*/\1/p' "$here/scripts/versions"; }

# number MINOR: prints the 36 of 1.36 or v1.36.5.
number() { cut -d . -f 2 <<<"$1"; }

# choose_version: sets $version from KUBERNETES_VERSION, the bundle's or Debian's version, or what is newest.
choose_version() {
  local wanted=${KUBERNETES_VERSION:-} minor='' whose=''
  wanted=${wanted#v}
  if [ -n "$wanted" ]; then
    [[ $wanted =~ ^(1\.[0-9]+)(\.[0-9]+)?$ ]] || die "KUBERNETES_VERSION=$KUBERNETES_VERSION is not a version: use one such as 1.36 or v1.36.5"
    minor=${BASH_REMATCH[1]}
  fi
  if [ -n "$bundle" ] && { [ -z "$bundle_only" ] || is_partial "$bundle"; }; then
    [ -f "$bundle/bundle.env" ] || die "$bundle is not a bundle, because it has no bundle.env: ./build.sh --bundle-only makes one"
    version=$(setting "$bundle" KUBERNETES_VERSION) whose="the bundle $bundle contains"
    [[ $version =~ ^v1\.[0-9]+\. ]] || die "$bundle/bundle.env names no KUBERNETES_VERSION such as v1.36.5: copy the bundle again, or recreate it"
  elif [ -n "$debian" ]; then
    version=$(known 1.20) whose="Debian has"
  elif [ "$wanted" != "$minor" ]; then
    version=v$wanted
  else
    [ -z "$minor" ] || refuse_too_old "$minor"
    find_newest "$minor"
  fi
  case $wanted in
    '' | "$minor" | "${version#v}") [ -z "$minor" ] || [ "$(number "$version")" = "$(number "$minor")" ] ;;
    *) false ;;
  esac || die "$whose Kubernetes $version, but KUBERNETES_VERSION asks for $KUBERNETES_VERSION"
  refuse_too_old "$version"
}

refuse_too_old() {
  [ "$(number "$1")" -lt "$(number "$(known)")" ] && [ -z "$(known "1.$(number "$1")")" ] || return 0
  die "Kubernetes ${1#v} is not supported; supported versions: $(supported | tr '\n' ' ')and newer ones"
}

# find_newest [MINOR]: sets $version to the newest release, or that of MINOR, that the release server names. If it names
# none, as a mirror may, then to the newest that this checkout knows.
find_newest() {
  local minor=${1:-} file=stable${1:+-$1} reason
  ! ask "$file" || { version=$answer; return; }
  reason=$refusal version=$(known "$minor")
  if [ -z "$version" ]; then
    # Without stable.txt, it is a mirror that has no such files, and the minor may exist.
    [ -z "$missing" ] || ! ask stable || die "there is no Kubernetes $minor at $KUBERNETES_URL, where the newest is $answer"
    die "$reason, and this checkout does not know Kubernetes $minor: ask for a whole version, such as v$minor.0"
  fi
  say "$reason: taking $version, the newest${minor:+ $minor} that this checkout knows"
}

# ask FILE: sets $answer to the version that the release server names in FILE.txt. If it fails, $refusal says why, and
# $missing is set if the server has no such file.
ask() {
  local url=$KUBERNETES_URL/$1.txt status=0 code
  answer='' missing='' refusal=''
  need_curl
  attend curl --fail --silent --show-error --location --connect-timeout "$KIND_STALL" --max-time "$KIND_STALL" \
    --output "$work/answer" --write-out '%{http_code}' "$url" >"$work/code" 2>"$work/why" || status=$?
  code=$(cat "$work/code")
  case $status:$code in
    0:*)
      answer=$(head -c 60 "$work/answer" | tr -dc '[:print:]')
      [[ ! $answer =~ ^v1\.[0-9]+\.[0-9]+$ ]] || [[ $1 = stable-* && ${answer%.*} != "v${1#stable-}" ]] || return 0
      refusal="$url does not contain a version, but: $answer"
      ;;
    22:40[34] | 22:410) missing=1 refusal="$url does not exist" ;;
    22:*) refusal="$url: the server answered $code" ;;
    *) refusal="$url does not answer ($(sed -n 's/^curl: ([0-9]*) //p' "$work/why" | tail -n 1))" ;;
  esac
  return 1
}

# announce_version: says so if this checkout does not know that minor version.
announce_version() {
  local newest
  newest=$(known)
  [ "$(number "$version")" -le "$(number "$newest")" ] \
    || say "Kubernetes $version is new to this checkout, and is baked like 1.$(number "$newest"), the newest that it knows"
}
