# shellcheck shell=bash
# What the environment sets, and what is refused at once. Sourced by build.sh, never run.

# check_settings: sets $cache, $hooks and $images.
check_settings() {
  cache=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kind}
  hooks=${KIND_HOOKS:-$here/hooks} images=${KIND_IMAGES:-$here/images.sh}
  [ -z "${KIND_HOOKS:-}" ] || [ -d "$hooks" ] || die "KIND_HOOKS=$hooks is not a directory"
  [ -z "${KIND_IMAGES:-}" ] || [ -f "$images" ] || die "KIND_IMAGES=$images is not a file"
  [ -z "${CRICTL_URL:-}${CRICTL_VERSION:-}" ] || say "CRICTL_URL and CRICTL_VERSION are no longer needed: nothing here uses crictl"
  [ -z "${KIND_KUBEADM:-}" ] || [ -f "$KIND_KUBEADM" ] || die "KIND_KUBEADM=$KIND_KUBEADM is not a file"
  case ${KIND_CNI:-} in '' | bridge | none) ;; *) die "KIND_CNI=$KIND_CNI is neither bridge nor none; with none, hooks/after-cluster.sh installs another network" ;; esac
  [ -z "${MINIKUBE_VERSION:-}" ] || say "MINIKUBE_VERSION is no longer needed: kubeadm alone does what minikube did"
  [ -z "$debian" ] || case ${KIND_ENGINE:-docker} in docker) ;; *) die "--debian makes and uses a Docker engine: leave out KIND_ENGINE=$KIND_ENGINE" ;; esac
}
