"""Takes from recorded cases those that are replayed here, with the files that they need.

    python3 tests/golden/select.py FOLDER_OF_ALL_CASES

Of the SEGS nodes those are taken whose names stand in `detailers/nodes.txt`. Of the diffusion engine, `diffusion/ops.txt` has one operation a line. Those alone on their line are replayed by the `goldens` program and become
`cases`. Where a file follows, only the operation's cases with tensors of that file are taken, and they become `other_cases`,
which tests of single crates read.
"""

import json
import shutil
import sys
from pathlib import Path

source = Path(sys.argv[1])
everything = json.loads((source / "cases.json").read_text())


def write(name, value):
    (here / name).write_text(json.dumps(value, indent=None, separators=(",", ":")) + "\n")


if "node" in everything["cases"][0]:
    here = Path(__file__).parent / "detailers"
    nodes = (here / "nodes.txt").read_text().splitlines()
    cases = [case for case in everything["cases"] if case["node"] in nodes]
    for case in cases:
        if case.get("file") and (source / case["file"]).exists():
            shutil.copyfile(source / case["file"], here / case["file"])
    for name in ["inputs.safetensors", "conds.safetensors"]:
        shutil.copyfile(source / name, here / name)
    models = json.loads((source / "models.json").read_text())
    text = json.dumps(cases)
    models["models"] = {name: model for name, model in models["models"].items() if f'"{name}"' in text}
    write("models.json", models)
    write("cases.json", {**everything, "cases": cases})
    sys.exit()

here = Path(__file__).parent / "diffusion"
replayed, others = set(), set()
for line in (here / "ops.txt").read_text().splitlines():
    op, *file = line.split()
    if file:
        others.add((op, file[0]))
    else:
        replayed.add(op)

cases = [case for case in everything["cases"] if case["op"] in replayed]
other_cases = [case for case in everything["cases"] if (case["op"], case.get("file")) in others and case not in cases]
missing = replayed - {case["op"] for case in cases}
assert not missing, f"no case has the operation {missing}"

for case in cases + other_cases:
    if case.get("inputs") or case.get("outputs"):
        shutil.copyfile(source / case["file"], here / case["file"])
for folder in {case["params"]["embeddings"] for case in cases if "embeddings" in case["params"]}:
    (here / folder).mkdir(exist_ok=True)
    for file in (source / folder).iterdir():
        shutil.copyfile(file, here / folder / file.name)
write("cases.json", {"format": everything["format"], "cases": cases, "other_cases": other_cases})

models = json.loads((source / "models.json").read_text())
named = {value for case in cases + other_cases for key, value in case.items() if isinstance(value, str)}
named |= {value for case in cases + other_cases for value in case["params"].values() if isinstance(value, str)}
models["models"] = {name: model for name, model in models["models"].items() if name in named}
write("models.json", models)
