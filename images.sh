#!/usr/bin/env bash
# Pulls the images to bake in. Runs when the inner Docker and the cluster are up. For example:
#   docker pull postgres:17
