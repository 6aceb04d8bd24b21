#!/usr/bin/env bash
# Runs inside the node during the bake, when the cluster is Ready and kubectl works. For example:
#   kubectl create namespace my-app
