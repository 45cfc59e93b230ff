"""The training pictures: picture i of the pool is a function of i alone, so any part can be drawn again at any time."""
import multiprocessing

import numpy as np

from draw import Rng, draw, sample_attributes

POOL_SEED, HELD_OUT_SEED = 1_000_000, 900_000_000


def attributes(i, seed=POOL_SEED):
    """Attributes of picture i."""
    return sample_attributes(Rng(seed + int(i)))


def picture(i):
    """Picture i."""
    return draw(attributes(i))


def pictures(path, count, workers=2):
    """The first `count` pictures, uint8 [count, 64, 64, 3], kept at `path`."""
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        array = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, 64, 64, 3))
        with multiprocessing.Pool(workers) as pool:
            for i, drawn in enumerate(pool.imap(picture, range(count), 64)):
                array[i] = drawn
        array.flush()
        partial.rename(path)
    array = np.load(path, mmap_mode="r")
    assert len(array) == count, f"{path} holds {len(array)} pictures, not {count}; delete it"
    return array
