#!/usr/bin/env python3
"""The goals for data-centre GPUs beside what `benches/measure FOLDER` left in FOLDER, as a table in Markdown.

    benches/goals.py FOLDER"""
import json
import sys
from pathlib import Path


def read(folder, name):
    """A run's rows by name; none where it was not made."""
    try:
        with open(folder / name, encoding="utf-8") as file:
            report = json.load(file)
    except (OSError, ValueError):
        return None, {}
    return report, {row["name"]: row for row in report["rows"]}


def main(folder):
    report, plain = read(folder, "bench.json")
    if report is None:
        sys.exit(f"error: {folder / 'bench.json'} is missing or damaged; run benches/measure first")
    _, tuned = read(folder, "tuned.json")
    _, ops = read(folder, "torch-ops.txt")
    _, steps = read(folder, "torch-steps.txt")
    _, compiled = read(folder, "torch-compiled.txt")
    peers = {name: read(folder, f"{name}.txt")[1] for name in ("burn", "meganeura")}
    ours = {**plain, **tuned}
    date, commit = (folder / "run.txt").read_text().split("\n")[:2]
    device = report["device"]
    print(f"{device['name']}, {device['backend']}, {device['driver']}; GEMM variant {device['gemm']}, {report['dtype']}; {date}, commit {commit[:10]}")
    print("\n| goal | bound | figure | met |\n|---|---|---|---|")

    def goal(name, bound, value, at_least=True, unit=""):
        text = "not measured" if value is None else f"{value:.3g}{unit}"
        met = "" if value is None else "yes" if (value >= bound if at_least else value <= bound) else "**no**"
        print(f"| {name} | {'≥' if at_least else '≤'} {bound:g}{unit} | {text} | {met} |")

    def get(rows, name, key):
        return rows.get(name, {}).get(key)

    def ratio(a, b):
        return a / b if a and b else None

    best = 0.0
    for side in (4096, 8192):
        name = f"linear {side}×{side}×{side}"
        rate = get(ours, name, "tflops")
        goal(f"GEMM {side}³", 300, rate, unit=" TFLOP/s")
        theirs = get(ops, name, "gflops")
        goal(f"GEMM {side}³, of cuBLAS", 45, ratio(rate and 100 * rate, theirs and theirs / 1e3), unit=" %")
        best = max(best, rate or 0.0)
    for name in ("conv 3×3 4×64×64 320 to 320", "conv 3×3 4×16×16 1280 to 1280"):
        rate = get(ours, name, "tflops")
        goal(f"{name}, of that GEMM", 60, ratio(rate and 100 * rate, best), unit=" %")
    goal("attention 1×4096×4096, 8 heads of 40", 80, get(ours, "attention 1×4096×4096, 8 heads of 40", "tflops"), unit=" TFLOP/s")
    for batch, bound in ((1, 1.0), (4, 1.5)):
        name = f"training step {batch}×64×64"
        goal(f"{name}, time / PyTorch eager's", bound, ratio(get(ours, name, "ms"), get(steps, name, "ms")), at_least=False)
        mine, eager, fused = (f"{ms:.1f} ms" if ms else "not measured" for ms in (get(rows, name, "ms") for rows in (ours, steps, compiled)))
        print(f"| {name} | | {mine}; PyTorch eager: {eager}, compiled: {fused} | |")
        encode = get(ours, name, "encode_ms")
        goal(f"{name}, encode time / GPU time", 1, ratio(encode, get(ours, name, "ms")), at_least=False)
    for name, bound in (("training step 1×64×64", 3.0), ("training step, recomputing 1×64×64", 2.5)):
        peak = get(ours, name, "peak_mib")
        goal(f"{name}, peak memory", bound, peak and peak / 1024, at_least=False, unit=" GiB")
    seconds = folder / "demo-seconds.txt"
    goal("demo", 60, float(seconds.read_text()) if seconds.exists() else None, at_least=False, unit=" s")
    for peer, rows in peers.items():
        for name, row in rows.items():
            mine = get(ours, name, "ms")
            goal(f"{name}, {peer}'s time / ours", 2 if name.startswith("conv") else 1, ratio(row["ms"], mine))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
