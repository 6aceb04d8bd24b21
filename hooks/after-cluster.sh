#!/usr/bin/env bash
# Runs in the node while it is baked: the cluster is Ready, and kubectl works. For example:
#   kubectl create namespace my-app
