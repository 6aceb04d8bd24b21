#!/usr/bin/env bash
# Pulls the images to bake in, while the inner Docker runs and the cluster is up. For example:
#   docker pull postgres:17
