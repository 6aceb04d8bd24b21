#!/usr/bin/env python3
"""Starts an image many times, a new container each time, and tells how long each took and how it went.

Usage: starts.py IMAGE [STARTS] [OPTION of docker create]...

Nothing is asserted but that each start becomes ready. The log of one that does not is printed. Ends with 1 when any
start has failed.
"""

import statistics
import sys

from kills import Container, docker

NAME = "kind-starts"
STARTS = 100


def start(image, options):
    """Returns the seconds until kubernetes-ready (None if that never came), and how the control plane came up."""
    container = Container(image, NAME, options)
    container.start()
    why = container.wait()
    took = container.age()
    log = docker("logs", NAME, check=False).decode(errors="replace")
    if why is not None:
        print(log)
        return None, why
    line = next((line for line in log.splitlines() if "the control plane is" in line), "no line about the control plane")
    return took, line[line.find("the control plane"):]


def main():
    image, *rest = sys.argv[1:]
    count, options = (int(rest[0]), rest[1:]) if rest else (STARTS, [])
    times = []
    try:
        for number in range(1, count + 1):
            took, how = start(image, options)
            print(f"{number:4} {'failed' if took is None else f'{took:6.2f} s'}  {how}", flush=True)
            if took is not None:
                times.append(took)
    finally:
        docker("rm", "--force", "--volumes", NAME, check=False)
    if times:
        print(f"{len(times)} of {count} starts: fastest {min(times):.2f} s, median {statistics.median(times):.2f} s, slowest {max(times):.2f} s")
    sys.exit(0 if len(times) == count else 1)


main()
