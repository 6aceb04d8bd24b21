#!/usr/bin/env python3
"""Kills a container at random moments of its boot and after, and starts it again, many times.

Usage: kills.py IMAGE STARTS [--name NAME] [--logs DIRECTORY] [--seed SEED] [--option OPTION]...

An option is one of docker create, such as --option=--cpus=1.

Every start that follows a kill is judged: it must be ready within 300 s. A quarter of the rounds take a
new container, the others go on with the volume as the kills have left it. Of a start that is not ready,
or takes much longer than the others, the logs are kept in the directory. Needs Docker and a machine with
time: a start takes 6 to 10 s. Ends with 1 when any start has failed.
"""

import argparse
import http.client
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

LIMIT = 300
# A start that takes longer than the median by this much (seconds) is looked at: a busy machine is slow, too.
SLOW = 10
POLL = 0.02
NEW_CONTAINER = 0.25
# How many starts in a row are cut short before one is judged. The one that is judged follows a kill in any case: what
# is ready is killed too.
CUTS = [0, 0, 1, 1]
# The longest that a ready container runs on (seconds).
AFTER = 3

# What is asked of a start that failed: the last words of everyone who may know.
EVIDENCE = {
    "containers": "ctr -n k8s.io containers ls; ctr -n k8s.io tasks ls; ctr -n k8s.io sandboxes ls; ctr -n k8s.io leases ls",
    "pods": "kubectl get pods --all-namespaces --output=wide; kubectl get events --all-namespaces; kubectl get pods --all-namespaces --output=yaml",
    "processes": "ps -eo pid,ppid,etimes,stat,args",
    "mounts": "cat /proc/self/mountinfo; df -h; df -i",
    "load": "cat /proc/loadavg; uptime",
    "logs.tar": "tar -c -C / var/log/kind var/log/pods",
}


def docker(*arguments, check=True):
    done = subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check and done.returncode != 0:
        sys.exit(f"docker {' '.join(arguments)}: {done.stdout.decode(errors='replace')}")
    return done.stdout


class Container:
    def __init__(self, image, name, options):
        self.name = name
        self.starts = 0
        docker("rm", "--force", "--volumes", name, check=False)
        docker("create", "--privileged", "--name", name, *options, image)

    def start(self):
        docker("start", self.name)
        self.starts += 1
        self.started = time.monotonic()
        template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        self.address = docker("inspect", "--format", template, self.name).decode().strip()

    def age(self):
        return time.monotonic() - self.started

    def kill(self):
        docker("kill", "--signal", "KILL", self.name)

    def file(self, name):
        """The file's text, or nothing when it is not served."""
        try:
            connection = http.client.HTTPConnection(self.address, 10080, timeout=5)
            connection.request("GET", f"/{name}")
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            connection.close()
            return text if answer.status == 200 else None
        except (OSError, http.client.HTTPException):
            return None

    def wait(self):
        """Waits until it is ready. Returns why it is not, or nothing."""
        while self.age() < LIMIT:
            if self.file("kubernetes-ready"):
                return None
            why = self.file("failed")
            if why:
                return why.strip()
            time.sleep(POLL)
        return f"not ready after {LIMIT} s, waiting for {self.file('waiting')}"

    def stages(self):
        """When each milestone came, and how busy the machine is: of a slow start, where the time went."""
        lines = (self.file("timeline") or "").split("\n")
        busy = pathlib.Path("/proc/loadavg").read_text().split()[0]
        return ", ".join([*(" ".join(reversed(line.split())) for line in lines if line), f"load {busy}"])

    def stays_ready(self, seconds):
        """Whether it has been ready all the time."""
        end, stays = time.monotonic() + seconds, True
        while time.monotonic() < end:
            stays = bool(self.file("kubernetes-ready")) and stays
            time.sleep(POLL)
        return stays

    def keep_evidence(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        for name in ["timeline", "waiting", "failed"]:
            (directory / name).write_text(self.file(name) or "")
        (directory / "log").write_bytes(docker("logs", self.name, check=False))
        for name, script in EVIDENCE.items():
            done = subprocess.run(["docker", "exec", self.name, "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            (directory / name).write_bytes(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("starts", type=int)
    parser.add_argument("--name", default="kind-stress")
    parser.add_argument("--logs", type=pathlib.Path, default=pathlib.Path("kills.logs"))
    parser.add_argument("--option", action="append", default=[])
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    random.seed(options.seed)
    # Either ends it with its counts; a shell has a process in the background ignore the first.
    for number in [signal.SIGINT, signal.SIGTERM]:
        signal.signal(number, signal.default_int_handler)
    print(f"seed {options.seed}", flush=True)
    container, took, failed, slow, lost = None, [], 0, 0, 0
    try:
        for number in range(1, options.starts + 1):
            if container is None or random.random() < NEW_CONTAINER:
                container, cuts, least = Container(options.image, options.name, options.option), [], 1
            else:
                age = container.age()
                container.kill()
                cuts, least = [f"{age:.2f} (ready)"], 0
            for _ in range(max(least, random.choice(CUTS))):
                container.start()
                time.sleep(random.uniform(0, 1.3 * statistics.median(took[-50:] or [8])))
                cuts.append(f"{container.age():.2f}")
                container.kill()
            container.start()
            why = container.wait()
            seconds = container.age()
            told = f"{number}: start {container.starts} of its container, cut at {', '.join(cuts)}:"
            if why is not None:
                failed += 1
                print(f"{told} FAILED after {seconds:.1f} s: {why}", flush=True)
                container.keep_evidence(options.logs / str(number))
                container = None
                continue
            typical = statistics.median(took[-50:] or [seconds])
            took.append(seconds)
            print(f"{told} ready after {seconds:.1f} s ({container.stages()})", flush=True)
            if seconds > typical + SLOW:
                slow += 1
                print(f"{number}: SLOW, with a median of {typical:.1f} s", flush=True)
                container.keep_evidence(options.logs / str(number))
            if not container.stays_ready(random.uniform(0, AFTER)):
                lost += 1
                print(f"{number}: LOST its readiness again", flush=True)
                container.keep_evidence(options.logs / str(number))
    except KeyboardInterrupt:
        pass
    finally:
        docker("rm", "--force", "--volumes", options.name, check=False)
        judged = len(took) + failed
        print(f"{judged} starts after a kill: {failed} not ready, {slow} slow, {lost} lost their readiness again; "
              f"median {statistics.median(took or [0]):.1f} s, longest {max(took or [0]):.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
