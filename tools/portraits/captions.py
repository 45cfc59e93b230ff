"""Captions of portraits: attributes in words, some left out, reordered, now and then with a tag that means nothing."""
from draw import BACKGROUNDS, CLOTH_COLORS, CLOTHES, EXPRESSIONS, HAIR_COLORS, HAIRS, SKINS

PERSONS = ["woman", "man", "person"]
SUBJECTS = ["a portrait of a {}", "portrait of a {}", "a {}", "a picture of a {}"]


def hair_words(hair, color):
    """`short red hair`, `red bob`, `bald`; either part may be missing (None)."""
    if hair == "bald":
        return "bald"
    if hair in ("bob", "ponytail"):
        return f"{color} {hair}" if color else hair
    return " ".join(word for word in (hair, color, "hair") if word)


def clothing_words(clothing, color):
    """`blue hoodie`, `hoodie`."""
    return f"{color} {clothing}" if color else clothing


def full(attrs, hair=None, clothing=None):
    """The caption that says everything but the skin, in the usual order: what evaluation asks for. Words given for hair or
    clothing stand in place of their own; with "" nothing is said of it."""
    hair = hair_words(attrs["hair"], attrs["hair_color"]) if hair is None else hair
    clothing = clothing_words(attrs["clothing"], attrs["clothing_color"]) if clothing is None else clothing
    expression = attrs["expression"] if attrs["expression"] != "neutral" else ""
    words = [f"a portrait of a {attrs['gender']}", hair, clothing, f"{attrs['background']} background", expression]
    return ", ".join(word for word in words if word)


def gibberish(rng):
    """A tag such as `xqv_b3`."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    word = "".join(rng.pick(letters) for _ in range(rng.between(2, 4)))
    ending = rng.pick(letters) if rng.chance(50) else ""
    return f"{word}_{ending}{rng.below(10)}" if rng.chance(75) else f"{word}{rng.below(10)}"


def caption(attrs, rng):
    """A training caption, and what it says: a dict of the attributes it names."""
    if rng.chance(10):
        return "", {}
    said = {}

    def say(key, percent):
        if not rng.chance(percent):
            return None
        said[key] = attrs[key]
        return attrs[key]

    words = []
    hair, color = say("hair", 88), None
    if attrs["hair"] != "bald":
        color = say("hair_color", 88)
    if hair or color:
        words.append(hair_words(hair, color))
    clothing = say("clothing", 88)
    if clothing:
        words.append(clothing_words(clothing, say("clothing_color", 92)))
    if say("background", 88):
        words.append(f"{attrs['background']} background")
    if say("expression", 80 if attrs["expression"] != "neutral" else 25):
        words.append(attrs["expression"])
    if say("skin", 40):
        words.append(f"{attrs['skin']} skin")
    if rng.chance(50):
        for i in range(len(words) - 1, 0, -1):
            j = rng.below(i + 1)
            words[i], words[j] = words[j], words[i]
    if rng.chance(92):
        person = "person" if rng.chance(15) else say("gender", 100)
        words.insert(0, SUBJECTS[0 if rng.chance(60) else rng.below(len(SUBJECTS))].format(person))
    if rng.chance(15):
        words.insert(rng.below(len(words) + 1), gibberish(rng))
    return ", ".join(words), said


# What the text encoder's pretraining asks of a caption: each attribute's values; one more stands for "not said".
QUESTIONS = {"gender": ["woman", "man"], "skin": SKINS, "hair": HAIRS, "hair_color": HAIR_COLORS, "clothing": CLOTHES,
             "clothing_color": CLOTH_COLORS, "background": BACKGROUNDS, "expression": EXPRESSIONS}
