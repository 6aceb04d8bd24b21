#!/usr/bin/env bash
# Runs when the cluster is Ready: a deployment of its own, and a proof that the value arrived which gives nothing away.
set -euo pipefail
echo "e2e: after-cluster runs"
kubectl wait --for=condition=Ready node --all --timeout 30s
kubectl create namespace from-hook
digest=$(printf %s "${KIND_TEST_SECRET:?--env KIND_TEST_SECRET passes it on}" | sha256sum | cut -d ' ' -f 1)
kubectl -n from-hook create configmap values --from-literal=secret-sha256="$digest"
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
            periodSeconds: 1
YAML
echo "after-cluster" >>/var/lib/from-hook
# An ingress controller's Service, as a hook that waits for it would bake it.
kubectl -n from-hook expose deployment web --type=LoadBalancer --port=8800 --target-port=8080
timeout 60 bash -c 'until kubectl -n from-hook get service web --output=jsonpath={.status.loadBalancer.ingress[0].ip} | grep .; do sleep 0.2; done'
