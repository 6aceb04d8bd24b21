"""sbom.py FILE: checks the list of what is in an image against CycloneDX's schema, and that each package URL is one."""

import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

validator = JsonStrictValidator(SchemaVersion.V1_5)
text = pathlib.Path(sys.argv[1]).read_text()
wrong = validator.validate_str(text)
assert wrong is None, wrong
components = json.loads(text)["components"]
urls = [PackageURL.from_string(component["purl"]) for component in components if component["type"] != "operating-system"]
types = {url.type for url in urls}
assert types == {"cargo", "deb", "golang", "oci"}, types
# The negative control.
assert validator.validate_str(text.replace('"library"', '"book"', 1)) is not None
print(f"{sys.argv[1]} is CycloneDX 1.5 with {len(urls)} package URLs")
