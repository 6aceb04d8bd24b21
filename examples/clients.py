"""clients.py HOST FILES_PORT API_PORT DOCKER_PORT: checks that the official Python clients work with what port 10080 serves."""

import sys
import urllib.request

import docker
import yaml
from kubernetes import client, config

host, files, api, engine_port = sys.argv[1], *map(int, sys.argv[2:])
text = urllib.request.urlopen(f"http://{host}:{files}/config?port={api}", timeout=10).read()
kubernetes = config.new_client_from_config_dict(yaml.safe_load(text))
core = client.CoreV1Api(kubernetes)
core.create_namespaced_config_map("default", client.V1ConfigMap(metadata={"generateName": "by-python-"}, data={"a": "b"}))
names = [item.metadata.name for item in core.list_namespaced_config_map("default").items]
assert any(name.startswith("by-python-") for name in names), names

engine = docker.DockerClient(f"tcp://{host}:{engine_port}")
assert engine.containers.run("kind-lab/busybox:1", ["echo", "from the SDK"], remove=True) == b"from the SDK\n"
print(f"kubernetes {client.VersionApi(kubernetes).get_code().git_version} and Docker {engine.version()['Version']} answer at {host}")
