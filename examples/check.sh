#!/usr/bin/env bash
# Checks the examples as far as that is possible without their runners: against the CI systems' own JSON
# schemas, the syntax of the Jenkinsfile and of the programs, and the Pod against the Kubernetes API.
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
schema gitlab-ci gitlab-ci.yml gitlab-two-clusters.yml gitlab-kubernetes-executor.yml gitlab-component.yml
# What a component's file holds after its header, which declares the inputs, is a configuration like any other.
sed -e '1,/^---$/d' -e 's/\$\[\[ inputs\.job ]]/.kind/' ../templates/kind.yml >"$work/component.yml"
schema gitlab-ci "$work/component.yml"
schema github-workflows github-actions.yml github-action.yml ../.github/workflows/*.yml
schema github-actions ../action.yml
schema circle-ci circleci.yml
schema compose-spec compose.yaml
sed 's/services:/servises:/' compose.yaml >"$work/compose.yaml"
refused schema compose-spec "$work/compose.yaml"

sed 's/using:/use:/' ../action.yml >"$work/action.yml"
refused schema github-actions "$work/action.yml"

step "syntax and the pod"
python check.py Jenkinsfile pod.yaml test_with_testcontainers.py testcontainers.test.mjs testcontainers_test.go \
  TestcontainersTest.java ../scripts/github-action.js
sed 's/securityContext:/securityOptions:/' pod.yaml >"$work/pod.yaml"
refused python check.py "$work/pod.yaml"
head -n 12 Jenkinsfile >"$work/Jenkinsfile"
refused python check.py "$work/Jenkinsfile"
for program in test_with_testcontainers.py testcontainers.test.mjs testcontainers_test.go TestcontainersTest.java; do
  sed '0,/(/s///' "$program" >"$work/$program"
  refused python check.py "$work/$program"
done
step "every example is valid"
