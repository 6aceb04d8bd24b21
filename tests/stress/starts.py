#!/usr/bin/env python3
"""Starts an image many times, one start after another, and tells how long each took and how it went.

    tests/stress/starts.py IMAGE [COUNT] [ARGUMENT OF docker run...]

Nothing is asserted but that each start becomes ready. The log of a start that does not is printed.
"""
import json
import socket
import subprocess
import sys
import time

LIMIT = 300
POLL = 0.02
PORT = 10080


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def serves(address, name):
    try:
        with socket.create_connection((address, PORT), 1) as connection:
            connection.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
            return connection.recv(64).split()[1:2] == [b"200"]
    except OSError:
        return False


def start(image, arguments):
    """Returns the seconds until kubernetes-ready (None if that never came), and how the control plane came up."""
    began = time.monotonic()
    container = docker("run", "--detach", "--privileged", *arguments, image).strip().splitlines()[-1]
    try:
        networks = json.loads(docker("inspect", container))[0]["NetworkSettings"]["Networks"]
        address = next(iter(networks.values()))["IPAddress"]
        while not serves(address, "kubernetes-ready"):
            if time.monotonic() - began > LIMIT:
                print(docker("logs", container))
                return None, "not ready"
            time.sleep(POLL)
        took = time.monotonic() - began
        log = docker("logs", container)
        how = next((line for line in log.splitlines() if "the control plane is" in line), "no line about the control plane")
        return took, how[how.find("the control plane"):]
    finally:
        docker("rm", "--force", "--volumes", container)


def main():
    image, count, arguments = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 100, sys.argv[3:]
    times, failed = [], 0
    for number in range(1, count + 1):
        took, how = start(image, arguments)
        print(f"{number:4} {'failed' if took is None else f'{took:6.2f} s'}  {how}", flush=True)
        if took is None:
            failed += 1
        else:
            times.append((took, number, how))
    times.sort()
    if times:
        median, slowest = times[len(times) // 2], times[-1]
        print(f"{len(times)} starts: fastest {times[0][0]:.2f} s, median {median[0]:.2f} s, slowest {slowest[0]:.2f} s (number {slowest[1]}: {slowest[2]})")
    sys.exit(1 if failed else 0)


main()
