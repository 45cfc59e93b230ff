#!/usr/bin/env python3
"""Writes goldens.json: attributes, captions and FNV-1a hashes of pictures, for ports of `draw` and `captions` to check
themselves against.    goldens.py OUT.json"""
import json
import sys
from pathlib import Path

from captions import caption, full
from draw import CLOTHING_STYLE_B, HAIR_STYLE_A, Rng, draw, sample_attributes, scores


def fnv1a(data):
    """64-bit FNV-1a in hexadecimal."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def main(path):
    rows = []
    for seed in range(64):
        rng = Rng(seed)
        attrs = sample_attributes(rng)
        written = caption(attrs, rng)[0]
        if seed % 4 == 2:
            attrs["hair"] = HAIR_STYLE_A
        if seed % 4 == 3:
            attrs["clothing"] = CLOTHING_STYLE_B
        picture = draw(attrs)
        row = {"seed": seed, "attributes": attrs, "caption": written, "fnv1a": fnv1a(picture.tobytes()), "scores": scores(picture)}
        rows.append(row | ({"full": full(attrs)} if seed % 4 < 2 else {}))
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
