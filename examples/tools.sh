# shellcheck shell=bash
# Shared by check.sh and run.sh: messages, and other people's tools, which are kept outside the checkout.
# Sourced, never run.

cache=${KIND_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kind}/examples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
began=$SECONDS

step() { printf -- '--- examples: %s (%d s)\n' "$*" $((SECONDS - began)); }
die() { printf 'examples: error: %s\n' "$*" >&2; exit 1; }

# made DIRECTORY RECIPE: succeeds if the directory was completed from this recipe.
made() { [ "$(cat "$1/made" 2>/dev/null)" = "$2" ]; }

# Puts the Python programs of requirements.txt first on PATH.
python_tools() {
  local venv=$cache/python recipe
  recipe=$(sha256sum <requirements.txt)
  if ! made "$venv" "$recipe"; then
    step "installing the Python packages of requirements.txt"
    python3 -m venv --clear "$venv" || die "python3 cannot create a virtual environment: install python3-venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement requirements.txt || die "pip failed; the reason is above"
    echo "$recipe" >"$venv/made"
  fi
  export PATH=$venv/bin:$PATH
}

# Puts gitlab-ci-local on PATH: the last version that runs on Node.js 20, which Debian 13 has.
gitlab_ci_local() {
  local name directory=$cache/npm recipe=gitlab-ci-local@4.61.1
  for name in npm rsync git; do command -v "$name" >/dev/null || die "$name is missing: install it"; done
  if ! made "$directory" "$recipe"; then
    step "installing $recipe"
    rm -rf "$directory"
    npm install --silent --prefix "$directory" "$recipe" || die "npm failed; the reason is above"
    echo "$recipe" >"$directory/made"
  fi
  export PATH=$directory/node_modules/.bin:$PATH
}
