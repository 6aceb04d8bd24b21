#!/bin/sh
# Counts, inside a container, what a reset could leave behind.
# shellcheck disable=SC2012 # the names in /proc and /sys are plain
echo threads "$(ls /proc/1/task | wc -l)"
echo descriptors "$(ls /proc/1/fd | wc -l)"
echo mounts "$(wc -l </proc/self/mountinfo)"
echo cgroups "$(find /sys/fs/cgroup -type d | wc -l)"
echo interfaces "$(ls /sys/class/net | wc -l)"
echo rules "$(iptables-save | grep -c ^-A)"
echo containers "$(ctr --address /run/containerd/containerd.sock --namespace k8s.io containers ls --quiet | wc -l)"
echo snapshots "$(ctr --address /run/containerd/containerd.sock --namespace k8s.io snapshots ls | wc -l)"
echo processes "$(ls -d /proc/[0-9]* | wc -l)"
