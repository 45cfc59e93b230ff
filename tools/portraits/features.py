#!/usr/bin/env python3
"""Pictures and captions of the two held-out features: 24 each, everything but the feature varied. Every second caption of the
one says nothing of what the other is about, so that both can be asked for at once. And captions of portraits that nothing
was trained on, for the demo to draw.

    features.py FOLDER        writes FOLDER/hair_style_a, FOLDER/clothing_style_b and FOLDER/unseen.txt"""
import os
import sys

from PIL import Image

from captions import full
from draw import CLOTHING_STYLE_B, HAIR_STYLE_A, Rng, draw, sample_attributes

COUNT = 24
UNSEEN, UNSEEN_SEED = 64, 700_000_000


def make(folder, tag, key, value, seed):
    os.makedirs(os.path.join(folder, tag), exist_ok=True)
    rng = Rng(seed)
    other = "clothing" if key == "hair" else "hair"
    for i in range(COUNT):
        attrs = sample_attributes(rng)
        attrs[key] = value
        path = os.path.join(folder, tag, f"{i:02}.png")
        Image.fromarray(draw(attrs)).save(path, optimize=True)
        with open(path[:-4] + ".txt", "w", encoding="utf-8") as text:
            said = {key: tag} | ({other: ""} if i % 2 else {})
            text.write(full(attrs, **said) + "\n")


def unseen(path):
    with open(path, "w", encoding="utf-8") as text:
        text.writelines(full(sample_attributes(Rng(UNSEEN_SEED + i))) + "\n" for i in range(UNSEEN))


if __name__ == "__main__":
    make(sys.argv[1], "hair_style_a", "hair", HAIR_STYLE_A, 11)
    make(sys.argv[1], "clothing_style_b", "clothing", CLOTHING_STYLE_B, 12)
    unseen(os.path.join(sys.argv[1], "unseen.txt"))
