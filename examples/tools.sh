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

# Puts the programs of package.json on PATH, and sets $npm to the directory of their packages. gitlab-ci-local is the last
# version that runs on Node.js 20, which Debian 13 has.
npm_tools() {
  local name recipe
  npm=$cache/npm
  for name in npm rsync git; do command -v "$name" >/dev/null || die "$name is missing: install it"; done
  recipe=$(sha256sum <package.json)
  if ! made "$npm" "$recipe"; then
    step "installing the packages of package.json"
    rm -rf "$npm"
    mkdir -p "$npm"
    cp package.json "$npm/"
    npm install --silent --prefix "$npm" || die "npm failed; the reason is above"
    echo "$recipe" >"$npm/made"
  fi
  export PATH=$npm/node_modules/.bin:$PATH NODE_PATH=$npm/node_modules
}
