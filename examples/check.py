"""check.py FILE...: checks that a Jenkinsfile, or a source file of Go, Java, JavaScript or Python, parses, and that Kubernetes'
API knows every field of a pod.yaml."""

import importlib
import pathlib
import sys

import yaml
from groovy_parser.parser import parse_groovy_content
from kubernetes.client import ApiClient
from tree_sitter import Language, Parser

LANGUAGES = {".go": "go", ".java": "java", ".js": "javascript", ".mjs": "javascript"}


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


def pod(text):
    given, client = yaml.safe_load(text), ApiClient()
    known = client.sanitize_for_serialization(client._ApiClient__deserialize(given, "V1Pod"))
    fields = list(unknown(given, known))
    if fields:
        raise ValueError(f"Kubernetes does not know {', '.join(fields)}")


def source(text, language):
    grammar = importlib.import_module(f"tree_sitter_{language}")
    if Parser(Language(grammar.language())).parse(text.encode()).root_node.has_error:
        raise ValueError(f"this is no {language}")


def check(path):
    text = path.read_text()
    if path.name == "Jenkinsfile":
        parse_groovy_content(text)
    elif path.name == "pod.yaml":
        pod(text)
    elif path.suffix == ".py":
        compile(text, path, "exec")
    else:
        source(text, LANGUAGES[path.suffix])


for argument in sys.argv[1:]:
    try:
        check(pathlib.Path(argument))
    except Exception as cause:
        sys.exit(f"{argument}: {cause}")
