#!/usr/bin/env python3
"""Writes goldens.json: the scores of the pictures in examples/portraits by `draw.scores`, for the demo, which scores them as
well, to check itself against.    goldens.py EXAMPLES/PORTRAITS OUT.json"""
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from draw import scores

TAGS = ["hair_style_a", "clothing_style_b"]


def main(folder, out):
    rows = [(f"{tag}/{path.name}", scores(np.asarray(Image.open(path))))
            for tag in TAGS for path in sorted((folder / tag).glob("*.png"))]
    out.write_text("{\n" + ",\n".join(f'"{name}": {json.dumps(both)}' for name, both in rows) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
