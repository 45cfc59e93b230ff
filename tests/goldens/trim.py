"""Cuts a pipeline folder of goldens down to what the tests read: trim.py FOLDER...

Drops the training of the LoRA `kohya_full`: Strata does not train the text encoder.
"""
import json
import struct
import sys
from pathlib import Path

DROPPED = ("train.kohya_full.",)


def trim_tensors(path):
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    kept, body = {}, b""
    for name, entry in header.items():
        if name == "__metadata__":
            kept[name] = entry
        elif not name.startswith(DROPPED):
            start, end = entry["data_offsets"]
            kept[name] = {**entry, "data_offsets": [len(body), len(body) + end - start]}
            body += data[start:end]
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


for folder in map(Path, sys.argv[1:]):
    trim_tensors(folder / "goldens.safetensors")
    trim_tensors(folder / "goldens_train.safetensors")
    table = folder / "tolerances.json"
    rows = {k: v for k, v in json.loads(table.read_text()).items() if not k.startswith(DROPPED)}
    table.write_text("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in rows.items()) + "}\n")
