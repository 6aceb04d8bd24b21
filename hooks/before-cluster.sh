#!/usr/bin/env bash
# Runs inside the node during the bake, when the inner Docker is up and there is no cluster yet.
# Log in here to the private registries that images.sh pulls from:
#   docker login -u "$REGISTRY_USER" -p "$REGISTRY_PASSWORD" registry.example.com
