"""Testcontainers for Python: pip install testcontainers kubernetes pytest; pytest test_with_testcontainers.py"""

import os

import docker
import pytest
import requests
import yaml
from kubernetes import client, config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import HttpWaitStrategy

IMAGE = os.environ.get("KIND_IMAGE", "registry.example.com/kind:1.37")


@pytest.fixture(scope="session")
def kind():
    container = DockerContainer(IMAGE, privileged=True).with_exposed_ports(2375, 8443, 10081)
    container.waiting_for(HttpWaitStrategy(10081, "/docker-ready").for_status_code(200).with_startup_timeout(120))
    with container:
        yield container


@pytest.fixture(scope="session")
def kubernetes(kind):
    host, files, api = kind.get_container_host_ip(), kind.get_exposed_port(10081), kind.get_exposed_port(8443)
    ready = requests.get(f"http://{host}:{files}/kubernetes-ready?wait=120", timeout=130)
    assert ready.ok, ready.text
    answer = requests.get(f"http://{host}:{files}/config?port={api}", timeout=10)
    answer.raise_for_status()
    return config.new_client_from_config_dict(yaml.safe_load(answer.text))


@pytest.fixture
def clean(kind, kubernetes):
    """The cluster as it was baked, for each test that asks for it."""
    host, files = kind.get_container_host_ip(), kind.get_exposed_port(10081)
    requests.post(f"http://{host}:{files}/reset?wait=120", headers={"X-Kind": "reset"}, timeout=130).raise_for_status()
    return kubernetes


@pytest.mark.parametrize("time", ["first", "second"])
def test_what_an_earlier_test_has_created_is_gone(clean, time):
    client.CoreV1Api(clean).create_namespace({"metadata": {"name": "mine"}})


def test_the_node_is_ready(kubernetes):
    node = client.CoreV1Api(kubernetes).list_node().items[0]
    assert {condition.type: condition.status for condition in node.status.conditions}["Ready"] == "True"


def test_the_engine_answers(kind):
    engine = docker.DockerClient(f"tcp://{kind.get_container_host_ip()}:{kind.get_exposed_port(2375)}")
    assert engine.ping()
