"""check.py JENKINSFILE POD: checks that the one parses as Groovy, and that Kubernetes' API knows every field of the other."""

import sys

import yaml
from groovy_parser.parser import parse_groovy_content
from kubernetes.client import ApiClient


class Response:
    def __init__(self, text):
        self.data = text


def unknown(given, known, path=""):
    """Yields the fields that the API's model dropped."""
    if isinstance(given, dict):
        for name, value in given.items():
            if not isinstance(known, dict) or name not in known:
                yield f"{path}.{name}"
            else:
                yield from unknown(value, known[name], f"{path}.{name}")
    elif isinstance(given, list):
        for number, value in enumerate(given):
            yield from unknown(value, known[number], f"{path}[{number}]")


jenkinsfile, pod = sys.argv[1:]
with open(jenkinsfile) as file:
    parse_groovy_content(file.read())
with open(pod) as file:
    given = yaml.safe_load(file)
client = ApiClient()
known = client.sanitize_for_serialization(client._ApiClient__deserialize(given, "V1Pod"))
fields = list(unknown(given, known))
sys.exit(f"{pod}: Kubernetes does not know {', '.join(fields)}" if fields else 0)
