"""runner.py WORKFLOW ACTION INPUT=VALUE...: runs a workflow's only job as GitHub's runner would, as far as our example needs
it: the shell steps, and the action in the directory ACTION in place of kind's, with these inputs and with its second run at
the end. Other actions are left out. Exits with 1 if a step fails."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

workflow, action = sys.argv[1:3]
overrides = dict(pair.split("=", 1) for pair in sys.argv[3:])
(job,) = yaml.safe_load(pathlib.Path(workflow).read_text())["jobs"].values()
manifest = yaml.safe_load(pathlib.Path(action, "action.yml").read_text())
temporary = tempfile.TemporaryDirectory()
environment = {**os.environ, "RUNNER_TEMP": temporary.name}
status, outputs, ends = "success", {}, []


def written(name):
    """What a step has written to the file of this name, which is empty then."""
    path = pathlib.Path(environment[name])
    pairs = dict(line.split("=", 1) for line in path.read_text().splitlines())
    path.write_text("")
    return pairs


def run(command, more):
    global status
    if subprocess.run(command, env=environment | more).returncode != 0:
        status = "failure"
    environment.update(written("GITHUB_ENV"))


def inputs(given):
    values = {name: str(field.get("default", "")) for name, field in manifest["inputs"].items()} | given
    return {f"INPUT_{name.upper()}": value.replace("${{ job.status }}", status) for name, value in values.items()}


for name in ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STATE"):
    environment[name] = os.path.join(temporary.name, name)
    pathlib.Path(environment[name]).touch()
for step in job["steps"]:
    if (status == "success") == (step.get("if") == "failure()"):
        continue
    if "run" in step:
        line = re.sub(r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) }}", lambda match: outputs[match[1]][match[2]], step["run"])
        print(f"# {line}", flush=True)
        run(["bash", "-e", "-c", line], {})
    elif step["uses"].startswith("you/kind@"):
        given = step["with"] | overrides
        print(f"# {step['uses']}", flush=True)
        run(["node", os.path.join(action, manifest["runs"]["main"])], inputs(given))
        outputs[step["id"]] = written("GITHUB_OUTPUT")
        assert set(outputs[step["id"]]) == set(manifest["outputs"]) or status != "success", outputs
        ends.append((given, {f"STATE_{name}": value for name, value in written("GITHUB_STATE").items()}))
for given, state in ends:
    print("# the end of the job", flush=True)
    run(["node", os.path.join(action, manifest["runs"]["post"])], inputs(given) | state)
sys.exit(status != "success")
