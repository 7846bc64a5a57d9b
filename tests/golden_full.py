"""The published code's numbers at the published size: python tests/golden_full.py LAYOUT.json NUMBERS.npz

Makes a checkpoint of the layout by the recipe, loads it through the public path and compares every array that NUMBERS
holds: a line `name relative-error` for each, exit code 1 if one is beyond 1e-4 (1e-3 for a DDIM walk). The file has the
names of ../shared/golden/zero123-tiny.npz; arrays that it does not hold are not compared. Needs under 24 GB of memory,
twice the layout's size of room in the temporary folder, and some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import golden
import numpy as np


def main(layout: str, numbers: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "published.ckpt"
        golden.write_checkpoint(path, golden.make_state(golden.read_layout(Path(layout))))
        with np.load(numbers) as file:
            recorded = {name: file[name] for name in file}
        beyond = 0
        compared = set()
        for name, error in golden.compare(path, recorded):
            print(name, f"{error:.3e}", flush=True)
            compared.add(name)
            beyond += not error <= golden.bound(name)
        for name in sorted(set(recorded) - golden.INPUTS - compared):
            print(f"{name} is no array that can be compared", file=sys.stderr)
    return 1 if beyond or not compared else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
