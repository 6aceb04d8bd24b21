#!/usr/bin/env bash
# Runs in the node while it is baked: the inner Docker is up, the cluster is not there yet.
# The place to log in to a private registry for images.sh:
#   docker login -u "$REGISTRY_USER" -p "$REGISTRY_PASSWORD" registry.example.com
