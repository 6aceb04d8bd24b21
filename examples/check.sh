#!/usr/bin/env bash
# Checks the examples as far as that is possible without their runners: against the CI systems' own JSON
# schemas, the Jenkinsfile's syntax, and the Pod against the Kubernetes API.
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=examples/tools.sh
. ./tools.sh
python_tools

schema() {
  local name=$1
  shift
  check-jsonschema --builtin-schema "vendor.$name" "$@"
}
# The negative controls: a broken example must not pass.
refused() {
  ! "$@" >/dev/null 2>&1 || die "a broken example passes: $*"
}

step "schemas"
schema gitlab-ci gitlab-ci.yml gitlab-kubernetes-executor.yml
schema github-workflows github-actions.yml ../.github/workflows/*.yml
schema circle-ci circleci.yml
schema compose-spec compose.yaml
sed 's/services:/servises:/' compose.yaml >"$work/compose.yaml"
refused schema compose-spec "$work/compose.yaml"

step "Jenkinsfile and pod"
python check.py Jenkinsfile pod.yaml
sed 's/startupProbe:/startProbe:/' pod.yaml >"$work/pod.yaml"
refused python check.py Jenkinsfile "$work/pod.yaml"
head -n 12 Jenkinsfile >"$work/Jenkinsfile"
refused python check.py "$work/Jenkinsfile" pod.yaml
python -c "compile(open(\"test_with_testcontainers.py\").read(), \"test\", \"exec\")"
step "every example is valid"
