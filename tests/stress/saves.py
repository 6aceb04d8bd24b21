#!/usr/bin/env python3
"""Saves one container's cluster, and kills the container at random moments of further saves.

Usage: saves.py IMAGE [KILLS [PODS]] [OPTION of docker create]...

Ten pods, or another number, and a hundred objects are made, saved, and reset to; both are timed. Then an object is made before each save that is
killed: the next start must be ready, with all objects of that save, or with all of the one before. Ends with 1 when anything
has failed.
"""

import random
import sys
import time

from kills import Container, docker
from resets import BUSYBOX, ask

NAME = "kind-saves"
KILLS, PODS = 30, 10
PREPARED = f"""
kubectl create deployment job --image={BUSYBOX} --replicas=PODS -- sleep 3600
for number in $(seq 100); do echo "apiVersion: v1
kind: ConfigMap
metadata: {{name: object-$number}}
---"; done | kubectl create -f - >/dev/null
kubectl rollout status deployment job --timeout=200s
"""


def inside(script):
    return docker("exec", NAME, "bash", "-ec", script).decode()


def kept():
    """The names of what was made between the saves, and how the control plane came up."""
    lines = [line for line in docker("logs", NAME).decode(errors="replace").splitlines() if "the control plane is" in line]
    how = "restored" if "is restored" in lines[-1] else lines[-1]
    names = inside("kubectl get configmaps --output=name").split()
    if sum(name.startswith("configmap/object-") for name in names) != 100:
        return None, how
    return {name for name in names if name.startswith("configmap/round-")}, how


def main():
    image, *rest = sys.argv[1:]
    kills, pods = (int(rest.pop(0)) if rest and rest[0].isdigit() else number for number in (KILLS, PODS))
    failed, took = 0, []
    try:
        container = Container(image, NAME, rest)
        container.start()
        if why := container.wait():
            sys.exit(f"it does not become ready: {why}")
        inside(PREPARED.replace("PODS", str(pods)))
        for what, command in [("save", "kind save"), ("reset", "kind reset"), ("save", "kind save"), ("reset", "kind reset")]:
            began = time.monotonic()
            print(what, inside(command).strip(), flush=True)
            took += [time.monotonic() - began] if what == "save" else []
        saved = set()
        for number in range(1, kills + 1):
            inside(f"kubectl create configmap round-{number}")
            now = saved | {f"configmap/round-{number}"}
            status, text = ask(container, "/save", "save")
            moment = random.random() * took[-1]
            time.sleep(moment)
            container.kill()
            container.start()
            why = container.wait() or (None if status == 202 else text)
            found, how = kept() if not why else (None, "")
            if not why and found not in (saved, now):
                why = f"{found} is neither {saved} nor {now}"
            which = "the new state" if found == now else "the old state"
            failed += bool(why)
            print(f"kill {number:4} after {moment:5.2f} s of {took[-1]:.2f}: {why or f'ready with {which}, {how}'}", flush=True)
            saved = found if found is not None else saved
    finally:
        docker("rm", "--force", "--volumes", NAME, check=False)
    print(f"{kills} kills, {failed} failed")
    sys.exit(1 if failed else 0)


main()
