#!/usr/bin/env python3
"""Resets one container's cluster many times, then kills containers at random moments of a reset.

Usage: resets.py IMAGE [RESETS [KILLS]] [--pull IMAGE] [OPTION of docker create]...

Before each reset a job's pods and objects are created. During it a `docker build` runs, a `docker pull` of the image that
--pull names (from a registry that the container reaches), a connection into a container of the inner Docker stays open,
and a poller asks every 10 ms whether the cluster is ready: it must not be told so by the earlier cluster. At the end, what
could have grown is counted and compared with the count after the first ten; each build leaves its image, and so two
snapshots. Ends with 1 when anything has failed.
"""

import http.client
import pathlib
import random
import statistics
import subprocess
import sys
import threading
import time

from kills import LIMIT, Container, docker

NAME = "kind-resets"
BUSYBOX = "kind-lab/busybox:1"
RESETS, KILLS = 100, 50
WARM_UP = 10

JOB = f"""
kubectl create deployment job --image={BUSYBOX} --replicas=5 -- sleep 3600
for number in $(seq 20); do echo "apiVersion: v1
kind: ConfigMap
metadata: {{name: object-$number}}
---"; done | kubectl create -f -
kubectl rollout status deployment job --timeout=60s
"""
BUILD = f"printf 'FROM {BUSYBOX}\\nRUN sleep 2; date >/built\\n' | docker build --no-cache --quiet -"
COUNT = (
    'until [ "$(kubectl get pods -A --no-headers | grep -c Running)" = "$(kubectl get pods -A --no-headers | wc -l)" ]; do sleep 1; done; sleep 5\n'
    + pathlib.Path(__file__).with_name("leftovers.sh").read_text()
    + "echo resident-kB $(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/1/status)\n"
)


def inside(script):
    return docker("exec", NAME, "bash", "-ec", script).decode()


def ask(container, target, guard="reset"):
    connection = http.client.HTTPConnection(container.address, 10080, timeout=LIMIT)
    connection.request("POST", target, headers={"X-Kind": guard})
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text


class Poller(threading.Thread):
    """Notes each change of readiness from the moment on at which `since` is set."""

    def __init__(self, container):
        super().__init__(daemon=True)
        self.container, self.since, self.ended, self.seen = container, None, False, []

    def run(self):
        while not self.ended:
            asked = time.monotonic()
            ready = bool(self.container.file("kubernetes-ready"))
            if self.since and asked >= self.since and self.seen[-1:] != [ready]:
                self.seen.append(ready)
            time.sleep(0.01)


def in_background(script):
    return subprocess.Popen(["docker", "exec", NAME, "bash", "-ec", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def reset(container, connection, pulled):
    """Returns the seconds that it took, how the control plane came up, and what was wrong."""
    inside(JOB)
    works = {"build": in_background(BUILD)}
    if pulled:
        works["pull"] = in_background(f"docker image rm --force {pulled} >/dev/null 2>&1 || true; docker pull --quiet {pulled}")
    poller = Poller(container)
    poller.start()
    began = time.monotonic()
    status, text = ask(container, "/reset")
    poller.since = time.monotonic()
    wrong = [] if status == 202 else [f"{status} {text}"]
    container.started = began
    why = container.wait()
    took = time.monotonic() - began
    # On a busy machine the poller's own question may take a while.
    limit = time.monotonic() + LIMIT
    while not why and poller.seen[-1:] != [True] and time.monotonic() < limit:
        time.sleep(0.1)
    poller.ended = True
    poller.join()
    if why:
        wrong.append(why)
    if poller.seen not in ([False, True], [True]) or (poller.seen == [True] and took > 1):
        wrong.append(f"readiness was {poller.seen}")
    for name, work in works.items():
        if work.wait(LIMIT) != 0:
            wrong.append(f"the {name} failed: {work.stdout.read().decode(errors='replace')}")
    connection.stdin.write(b"there?\n")
    connection.stdin.flush()
    if connection.stdout.readline() != b"there?\n":
        wrong.append("the connection into the container has ended")
    lines = docker("logs", NAME).decode(errors="replace").splitlines()
    how = [line for line in lines if "the control plane is" in line][-1]
    return took, how[how.find("the control plane"):], wrong


def kill(container, took):
    """Kills the container in the middle of a reset. Returns when, and what was wrong with its next start."""
    inside(JOB)
    status, text = ask(container, "/reset")
    moment = random.random() * took
    time.sleep(moment)
    container.kill()
    container.start()
    return moment, container.wait() or (None if status == 202 else text)


def main():
    image, *rest = sys.argv[1:]
    numbers = [int(word) for word in rest[:2] if word.isdigit()]
    options, pulled = rest[len(numbers):], None
    if options[:1] == ["--pull"]:
        pulled, options = options[1], options[2:]
    resets, kills = (numbers + [RESETS, KILLS][len(numbers):])[:2]
    failed, times, restored = 0, [], 0
    try:
        container = Container(image, NAME, options)
        container.start()
        if why := container.wait():
            sys.exit(f"it does not become ready: {why}")
        inside(f"docker run --detach --name lives {BUSYBOX} sleep infinity")
        connection = subprocess.Popen(["docker", "exec", "-i", NAME, "docker", "exec", "-i", "lives", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        first = ""
        for number in range(1, resets + 1):
            took, how, wrong = reset(container, connection, pulled)
            times.append(took)
            restored += "is restored" in how
            failed += bool(wrong)
            print(f"{number:4} {took:6.2f} s  {how}  {'; '.join(wrong)}", flush=True)
            if number == min(WARM_UP, resets):
                first = inside(COUNT)
        if times:
            print(f"{len(times)} resets: {failed} failed, {restored} restored; {min(times):.2f}, median {statistics.median(times):.2f}, {max(times):.2f} s")
            for before, after in zip(first.splitlines(), inside(COUNT).splitlines()):
                print(f"{before:24} at the end {after.split()[-1]}")
        for number in range(1, kills + 1):
            moment, wrong = kill(container, statistics.median(times) if times else 5)
            failed += bool(wrong)
            print(f"kill {number:4} after {moment:5.2f} s: {wrong or 'ready at the next start'}", flush=True)
    finally:
        docker("rm", "--force", "--volumes", NAME, check=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
