#!/usr/bin/env python3
"""Pictures and captions of the two held-out features: 24 each, everything but the feature varied.

    features.py FOLDER        writes FOLDER/hair_style_a and FOLDER/clothing_style_b"""
import os
import sys

from PIL import Image

from captions import clothing_words, hair_words
from draw import CLOTHING_STYLE_B, HAIR_STYLE_A, Rng, draw, sample_attributes

COUNT = 24


def make(folder, tag, key, value, seed):
    os.makedirs(os.path.join(folder, tag), exist_ok=True)
    rng = Rng(seed)
    for i in range(COUNT):
        attrs = sample_attributes(rng)
        attrs[key] = value
        path = os.path.join(folder, tag, f"{i:02}.png")
        Image.fromarray(draw(attrs)).save(path, optimize=True)
        hair = tag if key == "hair" else hair_words(attrs["hair"], attrs["hair_color"])
        clothing = tag if key == "clothing" else clothing_words(attrs["clothing"], attrs["clothing_color"])
        words = [f"a portrait of a {attrs['gender']}", hair, clothing, f"{attrs['background']} background"]
        words += [attrs["expression"]] if attrs["expression"] != "neutral" else []
        with open(path[:-4] + ".txt", "w", encoding="utf-8") as text:
            text.write(", ".join(words) + "\n")


if __name__ == "__main__":
    make(sys.argv[1], "hair_style_a", "hair", HAIR_STYLE_A, 11)
    make(sys.argv[1], "clothing_style_b", "clothing", CLOTHING_STYLE_B, 12)
