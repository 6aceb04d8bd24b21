#!/usr/bin/env bash
# Runs when the cluster is Ready: a deployment of its own, and a proof that the value arrived which gives nothing away.
set -euo pipefail
echo "e2e: after-cluster runs"
kubectl wait --for=condition=Ready node --all --timeout 30s
kubectl create namespace from-hook
digest=$(printf %s "${KIND_TEST_SECRET:?--env KIND_TEST_SECRET passes it on}" | sha256sum | cut -d ' ' -f 1)
kubectl -n from-hook create configmap values --from-literal=secret-sha256="$digest"
# What is deleted is in no part of the image: a Secret, and a pod with a secret in its environment.
kubectl -n from-hook create secret generic gone --from-literal=token="$KIND_TEST_SECRET"
# Pods are refused until their namespace has its service account.
timeout 60 bash -c 'until kubectl -n from-hook get serviceaccount default >/dev/null 2>&1; do sleep 0.2; done'
kubectl -n from-hook create -f - <<YAML
apiVersion: v1
kind: Pod
metadata: {name: gone}
spec:
  restartPolicy: Never
  containers:
    - name: gone
      image: kind-lab/busybox:1
      command: ["true"]
      env: [{name: TOKEN, value: "$KIND_TEST_SECRET"}]
YAML
timeout 60 bash -c 'until kubectl -n from-hook get pod gone --output=jsonpath={.status.phase} | grep -q Succeeded; do sleep 0.2; done'
kubectl -n from-hook delete secret/gone pod/gone
# What is kept shows that whoever looks for secrets would find them, in each form.
kubectl -n from-hook create secret generic kept --from-literal=token=kept-in-a-secret
mkdir /var/lib/kept
echo "kept-as-it-is" >/var/lib/kept/text
{ seq 300; echo "kept-in-gzip"; } | gzip >/var/lib/kept/gzip
base64 -d >/var/lib/kept/zstd <<<KLUv/QRoVQQAUo8hE7AZiwEH5KiQGqau7O7uXhbzJEDAEE1CXVob2mc3Ep5Crpov6sLtU9PMtbMlfVdj2Tm37r2JC5iP6UR7bfrhjEYn1SrYq7aQ9xxOldfotvrljnfWrEPv0oLWgzbZXYSbkJ/miHrarvQKs7DzJE1XV9k29+2NieflWvrOLjwoyRIcRaAghBEADYWrYA==
{ seq 300; echo "kept-in-base64"; } | gzip | base64 -w 0 >/var/lib/kept/base64
{ seq 300; echo "kept-in-a-tar"; } | gzip >/var/lib/kept/in
tar -C /var/lib/kept -czf /var/lib/kept/inner --remove-files in
tar -C /var/lib/kept -cf /var/lib/kept/tar --remove-files inner
# images.sh has made this image: a pod that runs it is one more that every start has to wait for.
kubectl -n from-hook apply -f - <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: from-images:1
          command: [sh, -c, 'echo from-hook >/tmp/index.html; exec httpd -f -p 8080 -h /tmp']
          readinessProbe:
            httpGet: {port: 8080, path: /index.html}
YAML
echo "after-cluster" >>/var/lib/from-hook
# An ingress controller's Service, as a hook that waits for it would bake it.
kubectl -n from-hook expose deployment web --type=LoadBalancer --port=8800 --target-port=8080
timeout 60 bash -c 'until kubectl -n from-hook get service web --output=jsonpath={.status.loadBalancer.ingress[0].ip} | grep .; do sleep 0.2; done'
# As operators leave leases that have elected a leader, for which the next one would wait: named after the pod, and by a bare
# UUID as in client-go's example; and one that is data.
operator=$(timeout 60 bash -c 'until kubectl -n from-hook get pods --selector app=web --output=name | grep .; do sleep 0.2; done')
operator=${operator#pod/}
kubectl -n from-hook create -f - <<YAML
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: operator}
spec: {holderIdentity: ${operator}_8d0f4e0c, leaseDurationSeconds: 137}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: example}
spec:
  holderIdentity: 0b0f9b0e-2f5e-4a52-9d6a-1f1b8f0c7a11
  leaseDurationSeconds: 137
  acquireTime: "2026-11-30T06:00:00.000000Z"
  renewTime: "2026-11-30T06:00:00.000000Z"
  leaseTransitions: 0
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: data}
spec: {holderIdentity: somebody, leaseDurationSeconds: 137}
YAML
