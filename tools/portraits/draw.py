"""Procedural 64×64 portraits: what to draw (`sample_attributes`), how (`draw`), and the two held-out features' `scores`.

`draw` is a pure function in integers, made to be ported exactly. It paints flat shapes, one over the other, on a
256×256 canvas (coordinates below are quarters of a picture's pixel, y down) and averages each 4×4 block:
(sum + 8) // 16. A sample belongs to a shape if its centre (i + 1/2) does; doubled coordinates keep that integral.
All chance is in `sample_attributes` and comes from SplitMix64."""
import numpy as np

SIZE, FINE = 64, 256

# ---------------------------------------------------------------- palettes
SKIN = {"light": (240, 206, 180), "tan": (214, 166, 124), "brown": (158, 108, 76), "dark": (100, 66, 50)}
HAIR = {"black": (40, 36, 42), "brown": (112, 66, 36), "blonde": (236, 208, 140), "red": (196, 64, 28),
        "blue": (50, 92, 214), "pink": (244, 132, 180)}
CLOTH = {"red": (206, 40, 48), "green": (44, 146, 70), "blue": (40, 80, 196), "white": (238, 238, 232),
         "grey": (122, 126, 132), "pink": (246, 150, 186)}
PLAIN = [(206, 206, 204), (184, 192, 198), (222, 214, 202)]
BEACH = {"sky": (150, 204, 240), "sun": (255, 244, 206), "sea": (48, 124, 184), "sand": (232, 210, 164)}
FOREST = {"sky": (170, 208, 178), "far": (84, 140, 84), "near": (38, 96, 50), "trunk": (88, 62, 44), "grass": (70, 122, 54)}
CITY = {"sky": (206, 198, 196), "far": (160, 158, 166), "near": (110, 108, 120), "window": (236, 224, 176), "street": (86, 86, 90)}
NIGHT = {"sky": (26, 32, 74), "star": (240, 240, 220), "moon": (244, 240, 214), "hill": (16, 22, 44)}
ROOM = {"wall": (226, 190, 158), "frame": (130, 84, 52), "pane": (190, 220, 236), "shelf": (130, 84, 52), "floor": (168, 112, 74)}
BOOKS = [(176, 60, 54), (60, 110, 84), (70, 90, 150), (222, 214, 190)]
EYE, LIPS, MOUTH, TEETH = (30, 26, 30), (196, 52, 62), (120, 44, 44), (250, 246, 240)
SHIRT, TIE, STRING = (246, 246, 242), (150, 30, 40), (248, 248, 244)
# Held out: no other colour above comes near these (see `check_palettes`).
CREST = {"violet": (150, 30, 240), "cyan": (0, 236, 236)}
CHECKER = {"black": (8, 6, 4), "gold": (255, 190, 0)}

# ---------------------------------------------------------------- attributes
GENDERS = ["woman", "man"]
SKINS = list(SKIN)
HAIRS = ["short", "long", "bob", "curly", "ponytail", "bald"]
HAIR_COLORS = list(HAIR)
CLOTHES = ["t-shirt", "hoodie", "dress", "suit", "sweater"]
CLOTH_COLORS = list(CLOTH)
BACKGROUNDS = ["plain", "beach", "forest", "city", "night", "room"]
EXPRESSIONS = ["neutral", "smiling", "surprised"]
# Held out of all base training; `draw` knows them.
HAIR_STYLE_A, CLOTHING_STYLE_B = "crest", "checker"


class Rng:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed & 0xFFFFFFFFFFFFFFFF

    def next(self):
        """64 random bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        return z ^ (z >> 31)

    def below(self, n):
        """A whole number from 0 to n − 1."""
        return ((self.next() >> 32) * n) >> 32

    def between(self, low, high):
        """A whole number from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent):
        """True in so many of 100 cases."""
        return self.below(100) < percent

    def pick(self, items):
        """One of them."""
        return items[self.below(len(items))]


def sample_attributes(rng):
    """Everything `draw` needs, at random. The order of the draws is part of the specification."""
    return {
        "gender": rng.pick(GENDERS), "skin": rng.pick(SKINS),
        "hair": rng.pick(HAIRS), "hair_color": rng.pick(HAIR_COLORS),
        "clothing": rng.pick(CLOTHES), "clothing_color": rng.pick(CLOTH_COLORS),
        "background": rng.pick(BACKGROUNDS), "expression": rng.pick(EXPRESSIONS),
        "body_x": rng.between(-8, 8), "head_x": rng.between(-4, 4), "head_y": rng.between(-6, 6),
        "side": rng.below(2), "scene": rng.below(64), "tone": rng.below(3),
    }


# ---------------------------------------------------------------- shapes
class Canvas:
    """256×256 samples. Shapes overwrite; a colour is three numbers from 0 to 255."""

    centres = 2 * np.arange(FINE, dtype=np.int64) + 1

    def __init__(self, color):
        self.pixels = np.empty((FINE, FINE, 3), np.uint8)
        self.pixels[:] = color

    def rect(self, x0, y0, x1, y1, color):
        """Samples x0 ≤ i < x1, y0 ≤ j < y1."""
        x0, y0, x1, y1 = max(x0, 0), max(y0, 0), max(min(x1, FINE), 0), max(min(y1, FINE), 0)
        self.pixels[y0:y1, x0:x1] = color

    def ellipse(self, cx, cy, rx, ry, color, top=0, bottom=FINE):
        """(x − cx)² ry² + (y − cy)² rx² ≤ rx² ry², only in rows top ≤ j < bottom."""
        x0, x1 = max(cx - rx, 0), min(cx + rx, FINE)
        y0, y1 = max(cy - ry, top, 0), min(cy + ry, bottom, FINE)
        if x0 < x1 and y0 < y1:
            x, y = self.centres[x0:x1] - 2 * cx, self.centres[y0:y1] - 2 * cy
            inside = (x * x * (ry * ry))[None, :] + (y * y * (rx * rx))[:, None] <= 4 * rx * rx * ry * ry
            self.pixels[y0:y1, x0:x1][inside] = color

    def polygon(self, points, color):
        """Even-odd rule; `points` are (x, y) in quarter pixels."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        x0, x1 = max(min(xs), 0), min(max(xs), FINE)
        y0, y1 = max(min(ys), 0), min(max(ys), FINE)
        if x0 >= x1 or y0 >= y1:
            return
        x, y = self.centres[x0:x1][None, :], self.centres[y0:y1][:, None]
        inside = np.zeros((y1 - y0, x1 - x0), bool)
        for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1]):
            if ay > by:
                ax, ay, bx, by = bx, by, ax, ay
            rows = (y > 2 * ay) & (y < 2 * by)
            inside ^= rows & ((x - 2 * ax) * (by - ay) < (y - 2 * ay) * (bx - ax))
        self.pixels[y0:y1, x0:x1][inside] = color

    def picture(self):
        """The mean of each 4×4 block, rounded half up."""
        sums = self.pixels.reshape(SIZE, 4, SIZE, 4, 3).astype(np.int64).sum((1, 3))
        return ((sums + 8) // 16).astype(np.uint8)


def dark(color):
    """Three quarters of a colour."""
    return tuple(c * 3 // 4 for c in color)


# ---------------------------------------------------------------- the picture
def draw(attrs):
    """The picture of these attributes: uint8 [64, 64, 3]."""
    canvas = backdrop(attrs)
    bx = 128 + attrs["body_x"]
    hx, hy = bx + attrs["head_x"], 108 + attrs["head_y"]
    skin = SKIN[attrs["skin"]]
    if attrs["clothing"] == "hoodie":
        canvas.ellipse(bx, 178, 66, 38, dark(CLOTH[attrs["clothing_color"]]))
    hair_behind(canvas, attrs, hx, hy)
    canvas.rect(hx - 15, hy + 30, hx + 15, 196, dark(skin))
    clothes(canvas, attrs, bx, hx, skin)
    if attrs["hair"] == "long":
        for side in (-1, 1):
            canvas.ellipse(hx + 44 * side, hy + 66, 14, 60, HAIR[attrs["hair_color"]])
    face(canvas, attrs, hx, hy, skin)
    hair_before(canvas, attrs, hx, hy)
    return canvas.picture()


def backdrop(attrs):
    """A canvas with the background. `scene` (0 to 63) shifts its parts."""
    kind, scene = attrs["background"], attrs["scene"]
    if kind == "beach":
        c = Canvas(BEACH["sky"])
        c.ellipse(36 + 184 * (scene & 1), 36 + scene // 4, 22, 22, BEACH["sun"])
        c.rect(0, 116, 256, 172, BEACH["sea"])
        c.rect(0, 172, 256, 256, BEACH["sand"])
    elif kind == "forest":
        c = Canvas(FOREST["sky"])
        c.rect(0, 172, 256, 256, FOREST["grass"])
        for k in range(5):
            x = k * 64 - 32 + scene
            c.polygon([(x - 36, 176), (x + 36, 176), (x, 48)], FOREST["far"])
        for k in range(4):
            x = k * 88 - 24 + scene // 2
            c.rect(x - 7, 176, x + 7, 216, FOREST["trunk"])
            c.polygon([(x - 34, 136), (x + 34, 136), (x, 16)], FOREST["near"])
            c.polygon([(x - 42, 188), (x + 42, 188), (x, 72)], FOREST["near"])
    elif kind == "city":
        c = Canvas(CITY["sky"])
        for k, top in enumerate((44, 84, 28, 100, 60, 36)):
            c.rect(k * 52 - 40 + scene // 2, top, k * 52 + 2 + scene // 2, 256, CITY["far"])
        for k, top in enumerate((96, 60, 116, 72)):
            x = k * 76 - 28 + scene // 2
            c.rect(x, top, x + 48, 256, CITY["near"])
            for row in range(6):
                for column in range(2):
                    c.rect(x + 8 + column * 20, top + 10 + row * 22, x + 20 + column * 20, top + 20 + row * 22, CITY["window"])
        c.rect(0, 224, 256, 256, CITY["street"])
    elif kind == "night":
        c = Canvas(NIGHT["sky"])
        for k in range(16):
            x, y = (k * 97 + scene * 8) % 256, (k * 53 + 11) % 168
            c.rect(x, y, x + 5, y + 5, NIGHT["star"])
        mx, my = 212 - 168 * (scene & 1), 38 + scene // 4
        c.ellipse(mx, my, 24, 24, NIGHT["moon"])
        c.ellipse(mx + 11, my - 5, 20, 20, NIGHT["sky"])
        c.ellipse(64 + scene * 2, 268, 150, 84, NIGHT["hill"])
    elif kind == "room":
        c = Canvas(ROOM["wall"])
        c.rect(0, 212, 256, 256, ROOM["floor"])
        left, right = (12, 188) if scene & 1 else (188, 12)
        y = 28 + scene // 4
        c.rect(left, y, left + 56, y + 76, ROOM["frame"])
        c.rect(left + 6, y + 6, left + 50, y + 70, ROOM["pane"])
        c.rect(left + 25, y, left + 31, y + 76, ROOM["frame"])
        c.rect(left, y + 35, left + 56, y + 41, ROOM["frame"])
        for shelf in (72, 124):
            c.rect(right, shelf, right + 56, shelf + 7, ROOM["shelf"])
            for k in range(5):
                height = 22 + (k * 7 + scene) % 10
                c.rect(right + 3 + k * 10, shelf - height, right + 11 + k * 10, shelf, BOOKS[(k + scene) % 4])
    else:
        c = Canvas(PLAIN[attrs["tone"]])
    return c


def clothes(canvas, attrs, bx, hx, skin):
    """Neck line, shoulders and what is worn."""
    kind = attrs["clothing"]
    wide = 86 if attrs["gender"] == "man" else 76
    if kind == CLOTHING_STYLE_B:
        torso(canvas, bx, wide, CHECKER["black"])
        area = canvas.pixels[176:]
        jet = (area == np.array(CHECKER["black"], np.uint8)).all(-1)
        x = (np.arange(FINE) - bx + 480) // 24
        y = np.arange(FINE - 176) // 24
        area[jet & ((x[None, :] + y[:, None]) % 2 == 1)] = CHECKER["gold"]
        canvas.polygon([(hx - 16, 172), (hx + 16, 172), (bx, 204)], skin)
        return
    color = CLOTH[attrs["clothing_color"]]
    shade = dark(color)
    if kind == "t-shirt":
        torso(canvas, bx, wide, color)
        for side in (-1, 1):
            x = bx + side * (wide - 14)
            canvas.rect(x - 16, 226, x + 16, 256, skin)
        canvas.ellipse(bx, 180, 26, 16, skin)
    elif kind == "hoodie":
        torso(canvas, bx, wide, color)
        canvas.ellipse(bx, 186, 34, 16, shade)
        canvas.ellipse(bx, 182, 20, 12, dark(skin))
        canvas.polygon([(bx - 32, 230), (bx + 32, 230), (bx + 44, 256), (bx - 44, 256)], shade)
        for side in (-1, 1):
            canvas.rect(bx + 16 * side - 3, 196, bx + 16 * side + 3, 224, STRING)
    elif kind == "dress":
        torso(canvas, bx, wide - 12, skin)
        canvas.polygon([(bx - 40, 212), (bx + 40, 212), (bx + 48, 256), (bx - 48, 256)], color)
        for side in (-1, 1):
            canvas.rect(bx + 32 * side - 6, 186, bx + 32 * side + 6, 214, color)
        canvas.rect(bx - 46, 240, bx + 46, 247, shade)
    elif kind == "suit":
        torso(canvas, bx, wide, color)
        canvas.polygon([(bx - 28, 178), (bx + 28, 178), (bx, 252)], SHIRT)
        for side in (-1, 1):
            canvas.polygon([(bx + 24 * side, 176), (bx + 46 * side, 186), (bx + 26 * side, 212), (bx, 254)], shade)
        canvas.polygon([(bx - 7, 188), (bx + 7, 188), (bx + 9, 226), (bx, 240), (bx - 9, 226)], TIE)
    else:
        torso(canvas, bx, wide, color)
        for y in (204, 228):
            canvas.rect(bx - 50, y, bx + 50, y + 9, shade if attrs["clothing_color"] == "white" else SHIRT)
        canvas.rect(hx - 20, 162, hx + 20, 190, shade)


def torso(canvas, bx, wide, color):
    """Shoulders: the upper half of an ellipse, its lower part squared."""
    canvas.ellipse(bx, 256, wide, 78, color)
    canvas.rect(bx - wide, 240, bx + wide, 256, color)


def face(canvas, attrs, hx, hy, skin):
    """Head, eyes, brows, nose, mouth."""
    woman = attrs["gender"] == "woman"
    for side in (-1, 1):
        canvas.ellipse(hx + 40 * side, hy + 4, 7, 10, dark(skin))
    canvas.ellipse(hx, hy, 41, 50, skin)
    if not woman:
        canvas.rect(hx - 24, hy + 30, hx + 24, hy + 48, skin)
    for side in (-1, 1):
        x = hx + 17 * side
        canvas.ellipse(x, hy, 8, 6, TEETH)
        canvas.ellipse(x, hy, 5, 6, EYE)
        if woman:
            canvas.rect(x - 9, hy - 8, x + 9, hy - 5, EYE)
        else:
            canvas.rect(x - 10, hy - 15, x + 10, hy - 9, dark(dark(skin)))
    canvas.rect(hx - 3, hy + 8, hx + 3, hy + 17, dark(skin))
    lips = LIPS if woman else MOUTH
    if attrs["expression"] == "smiling":
        canvas.ellipse(hx, hy + 22, 20, 18, lips, top=hy + 24)
        canvas.ellipse(hx, hy + 22, 15, 11, TEETH, top=hy + 24)
    elif attrs["expression"] == "surprised":
        canvas.ellipse(hx, hy + 31, 10, 12, lips)
        canvas.ellipse(hx, hy + 31, 6, 8, EYE)
    else:
        canvas.rect(hx - 13, hy + 27, hx + 13, hy + 33, lips)


# Centres of curls about the head's centre.
CURLS = [(-44, 18), (-52, -6), (-46, -32), (-28, -54), (0, -62), (28, -54), (46, -32), (52, -6), (44, 18)]
# Tips of the crest's spikes, from the left, and where they grow from, about the head's centre.
SPIKES = [(-54, -56, -42, -14), (-38, -84, -30, -28), (-14, -98, -10, -38), (14, -98, 10, -38), (38, -84, 30, -28), (54, -56, 42, -14)]


def hair_behind(canvas, attrs, hx, hy):
    """What the head covers."""
    kind = attrs["hair"]
    color = HAIR[attrs["hair_color"]]
    if kind == "short":
        canvas.ellipse(hx, hy - 10, 48, 52, color, bottom=hy + 8)
    elif kind == "long":
        canvas.ellipse(hx, hy - 4, 56, 58, color)
        canvas.rect(hx - 56, hy - 4, hx + 56, hy + 96, color)
    elif kind == "bob":
        canvas.ellipse(hx, hy - 4, 60, 58, color)
        canvas.rect(hx - 60, hy - 4, hx + 60, hy + 40, color)
    elif kind == "curly":
        for x, y in CURLS:
            canvas.ellipse(hx + x, hy + y, 22, 22, color)
    elif kind == "ponytail":
        side = 1 if attrs["side"] else -1
        canvas.ellipse(hx, hy - 10, 46, 50, color, bottom=hy)
        canvas.ellipse(hx + 62 * side, hy + 14, 20, 54, color)
        canvas.ellipse(hx + 46 * side, hy - 34, 20, 14, color)
    elif kind == HAIR_STYLE_A:
        for k, (x, y, rx, ry) in enumerate(SPIKES):
            tint = CREST["violet" if k % 2 == 0 else "cyan"]
            canvas.polygon([(hx + rx - 20, hy + ry), (hx + x, hy + y), (hx + rx + 20, hy + ry)], tint)


def hair_before(canvas, attrs, hx, hy):
    """What covers the forehead."""
    kind = attrs["hair"]
    color = HAIR[attrs["hair_color"]]
    if kind == "short":
        canvas.ellipse(hx, hy - 10, 46, 50, color, bottom=hy - 26)
    elif kind == "long":
        canvas.polygon([(hx - 44, hy - 4), (hx - 36, hy - 44), (hx, hy - 54), (hx + 4, hy - 44), (hx - 26, hy - 22)], color)
        canvas.polygon([(hx + 44, hy - 4), (hx + 36, hy - 44), (hx, hy - 54), (hx - 4, hy - 44), (hx + 26, hy - 22)], color)
    elif kind == "bob":
        canvas.ellipse(hx, hy - 4, 50, 52, color, bottom=hy - 18)
        for side in (-1, 1):
            canvas.ellipse(hx + 46 * side, hy + 8, 14, 36, color)
    elif kind == "curly":
        for x in (-26, 0, 26):
            canvas.ellipse(hx + x, hy - 38, 18, 15, color)
    elif kind == "ponytail":
        canvas.ellipse(hx, hy - 10, 44, 48, color, bottom=hy - 34)
    elif kind == HAIR_STYLE_A:
        for k, (x, y, rx, ry) in enumerate(SPIKES[1:5]):
            tint = CREST["cyan" if k % 2 == 0 else "violet"]
            canvas.polygon([(hx + rx - 12, hy - 40), (hx + rx * 3 // 2, hy + y + 14), (hx + rx + 12, hy - 40), (hx + rx, hy - 26)], tint)


# ---------------------------------------------------------------- measuring the held-out features
NEAR = 100  # Euclidean distance in RGB up to which a colour counts as one of a palette
CREST_REGION = (22, 6, 42, 16)  # x0, y0, x1, y1 in pixels: within the crest in every pose
TORSO_REGION = (18, 51, 46, 64)


def near(picture, region, color):
    """Share of the region's pixels whose colour is near."""
    x0, y0, x1, y1 = region
    d = picture[y0:y1, x0:x1].astype(np.int64) - np.array(color)
    return ((d * d).sum(-1) <= NEAR * NEAR).mean()


def scores(picture):
    """(score_a, score_b), each 0 to 1, of a uint8 [64, 64, 3] picture.

    a: share of the crest's region near violet or cyan. b: share of the torso's region near gold or black, where
    black counts only up to the share of gold, for dark hair and dark clothes are black as well."""
    a = near(picture, CREST_REGION, CREST["violet"]) + near(picture, CREST_REGION, CREST["cyan"])
    gold, black = near(picture, TORSO_REGION, CHECKER["gold"]), near(picture, TORSO_REGION, CHECKER["black"])
    return float(a), float(gold + min(gold, black))


def base_colors():
    """Every colour base pictures are painted with, darkened ones included."""
    tables = [SKIN, HAIR, CLOTH, BEACH, FOREST, CITY, NIGHT, ROOM]
    plain = [c for table in tables for c in table.values()] + PLAIN + BOOKS
    plain += [EYE, LIPS, MOUTH, TEETH, SHIRT, TIE, STRING]
    return plain + [dark(c) for c in [*SKIN.values(), *CLOTH.values()]] + [dark(dark(c)) for c in SKIN.values()]


def check_palettes():
    """The least distance from a base colour to violet, cyan and gold; each must exceed `NEAR` clearly."""
    def least(color):
        return min(sum((a - b) ** 2 for a, b in zip(color, other)) ** 0.5 for other in base_colors())
    return {name: least(color) for name, color in [*CREST.items(), ("gold", CHECKER["gold"])]}
