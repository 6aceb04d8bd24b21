#!/usr/bin/env python3
"""Prints what an image weighs, by part, as the table in docs/how-it-works.md: tests/bench/sizes.py IMAGE

Raw, and as gzip -6 and zstd -9 compress each part alone, in MB. The engine is the one that `docker` talks to.
"""

import io
import re
import subprocess
import sys
import tarfile

# The first that a path begins with.
PARTS = [
    ("kubelet, kubectl, CNI, the init", r"usr/local/bin/(kubelet|kubectl|kind|wait-for-kind\.sh)$|usr/local/sbin/|opt/cni/"),
    ("docker-buildx and other plugins", r"usr/local/libexec/"),
    ("Docker: dockerd, containerd, docker, ctr, shim, runc", r"usr/local/bin/"),
    ("images, unpacked: what pods run from", r"kind/store/[^/]*snapshotter[^/]*/snapshots/"),
    ("archives of layers, of images other than Kubernetes' own", r"kind/store/[^/]*content[^/]*/"),
    ("the saved control plane, and CRIU", r"kind/(restore|criu)/"),
    ("etcd's data, certificates, the rest", r"kind/|etc/kubernetes/|var/lib/(etcd|kubelet|kind)/"),
    ("Debian and its packages", r""),
]
COMPRESSORS = (["gzip", "-6"], ["zstd", "-q", "-9", "-T0"])


class Part:
    def __init__(self, name):
        self.name, self.raw = name, 0
        self.count = [subprocess.Popen(["wc", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in COMPRESSORS]
        self.compress = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=count.stdin) for command, count in zip(COMPRESSORS, self.count)
        ]
        for count in self.count:
            count.stdin.close()
            count.stdin = None
        self.tars = [tarfile.open(fileobj=compress.stdin, mode="w|") for compress in self.compress]

    def add(self, archive, member):
        data = archive.extractfile(member).read() if member.isreg() else b""
        self.raw += len(data)
        for tar in self.tars:
            tar.addfile(member, io.BytesIO(data))

    def sizes(self):
        for tar, compress in zip(self.tars, self.compress):
            tar.close()
            compress.stdin.close()
        return [self.raw] + [int(count.communicate()[0]) for count in self.count]


def main():
    image = sys.argv[1]
    engine = lambda *arguments: subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()
    container = engine("create", image)
    parts = [Part(name) for name, _ in PARTS]
    try:
        export = subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE)
        with tarfile.open(fileobj=export.stdout, mode="r|") as archive:
            for member in archive:
                index = next(index for index, (_, path) in enumerate(PARTS) if re.match(path, member.name))
                parts[index].add(archive, member)
    finally:
        engine("rm", "--force", "--volumes", container)
    rows = [(part.name, part.sizes()) for part in parts]
    rows.append(("total", [sum(column) for column in zip(*(sizes for _, sizes in rows))]))
    print("| part | raw, MB | gzip, MB | zstd, MB |\n|---|---|---|---|")
    for name, sizes in rows:
        print(f"| {name} | " + " | ".join(f"{size / 1e6:.0f}" for size in sizes) + " |")


main()
