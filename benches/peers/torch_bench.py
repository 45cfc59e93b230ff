#!/usr/bin/env python3
"""The kernels and the steps of `strata bench`, in PyTorch (with diffusers and peft).

    strata bench --list --json > shapes.json
    torch_bench.py ops shapes.json [--filter TEXT]... [--dtype f16] [--device cuda] [--json]
    torch_bench.py steps [--latent 64] [--batch 1 4] [--rank 8] [--compile] [--dtype f16] [--device cuda] [--json]

The same names, shapes and counts of operations. A time is the median of 5 batches of at least 0.2 s each, after a warm-up, with a
wait for the device round each batch; spread is (longest - shortest) / median. "there and back" is a forward pass and
the gradients of the inputs. Steps are those of a U-Net of Stable Diffusion 1.5's size with random weights; the training step has a
LoRA on all attention layers: forward, mean squared error, backward, gradient norm and AdamW; on f16 weights the LoRA is
f32 (autocast), as Strata's. Convolutions run channels-last. --compile: torch.compile of the U-Net, "max-autotune-no-cudagraphs"."""
import argparse
import json
import statistics
import sys
import time
import warnings

import torch
import torch.nn.functional as F

warnings.simplefilter("ignore")
BATCH_SECONDS = 0.2
LONG_SECONDS = 10
RANK = 8
DTYPES = {"f16": torch.float16, "f32": torch.float32}


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device, op):
    """Median and spread of seconds a call takes."""
    def batch(count):
        wait(device)
        start = time.perf_counter()
        for _ in range(count):
            op()
        wait(device)
        return (time.perf_counter() - start) / count
    batch(1)
    once = batch(1)
    count = max(1, min(1000, int(BATCH_SECONDS / once) + 1))
    times = [batch(count) for _ in range(3 if once > LONG_SECONDS else 5)]
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def kernel(row, make):
    """What to call for a row of the list, and what it takes gradients of."""
    op, lora = row["op"], "lora" in row.get("pass", "")
    if op == "linear":
        m, n, k = row["m"], row["n"], row["k"]
        x, w, down, up = make(m, k), make(n, k), make(RANK, k), make(n, RANK)
        if lora:
            return lambda: torch.addmm(F.linear(x, w), F.linear(x, down), up.T), [x, down, up]
        return lambda: F.linear(x, w), [x]
    if op == "conv":
        image = lambda n, c, h, w: make(n, c, h, w).to(memory_format=torch.channels_last)
        batch, side, c, o = row["batch"], row["side"], row["in"], row["out"]
        x, w = image(batch, c, side, side), image(o, c, 3, 3)
        down, up = image(RANK, c, 3, 3), image(o, RANK, 1, 1)
        if lora:
            return lambda: F.conv2d(x, w, padding=1) + F.conv2d(F.conv2d(x, down, padding=1), up), [x, down, up]
        return lambda: F.conv2d(x, w, padding=1), [x]
    if op == "attention":
        q, k, v = (make(row["batch"], row["heads"], row[count], row["dim"]) for count in ("queries", "keys", "keys"))
        return lambda: F.scaled_dot_product_attention(q, k, v), [q, k, v]
    if op == "group_norm":
        c = row["channels"]
        x, affine = make(row["batch"], c, row["side"], row["side"]).to(memory_format=torch.channels_last), make(c)
        return lambda: F.silu(F.group_norm(x, row["groups"], affine, affine)), [x]
    if op == "layer_norm":
        x, affine = make(row["rows"], row["channels"]), make(row["channels"])
        return lambda: F.layer_norm(x, (row["channels"],), affine, affine), [x]
    if op == "geglu":
        x, c = make(row["rows"], 2 * row["channels"]), row["channels"]
        return lambda: x[:, :c] * F.gelu(x[:, c:]), [x]
    raise ValueError(f"unknown op {op}")


def ops(rows, make):
    """Name, operations (a multiply-add counts two) and what to call, of each kernel."""
    for row in rows:
        call, inputs = kernel(row, make)
        flops = row["flops"]
        if "backward" not in row.get("pass", ""):
            yield row["name"], flops, call
            continue
        inputs = [t.requires_grad_() for t in inputs]
        grad_out = torch.randn_like(call())
        # the gradient of attention's inputs takes 5 products where the forward pass takes 2
        factor = 3.5 if row["op"] == "attention" else 2
        yield row["name"], int(factor * flops), lambda: torch.autograd.grad(call(), inputs, grad_out)


def steps(args, device, dtype):
    """Name and what to call, of forward passes and training steps."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    torch.manual_seed(0)
    for trained in (False, True):
        with torch.device(device):
            unet = UNet2DConditionModel(sample_size=args.latent, cross_attention_dim=768).to(dtype).requires_grad_(False)
        unet.to(memory_format=torch.channels_last)
        if trained:
            targets = ["to_q", "to_k", "to_v", "to_out.0"]
            unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets, init_lora_weights="gaussian"))
        weights = [p for p in unet.parameters() if p.requires_grad]
        for p in weights:
            p.data = p.data.float()
        run = torch.compile(unet, mode="max-autotune-no-cudagraphs") if args.compile else unet
        for batch in args.batch:
            shape = (batch, 4, args.latent, args.latent)
            sample, target = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape, device=device)
            context = torch.randn(batch, 77, 768, device=device, dtype=dtype)
            timesteps = 500 + torch.arange(batch, device=device)
            if not trained:
                def forward():
                    with torch.no_grad():
                        run(sample, timesteps, context)
                yield f"U-Net forward {batch}×{args.latent}×{args.latent}", 0, forward
                continue
            optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.01)
            scale = 1.0 if dtype == torch.float32 else 1024.0

            def step():
                optimizer.zero_grad()
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    predicted = run(sample, timesteps, context).sample
                (scale * F.mse_loss(predicted.float(), target)).backward()
                for p in weights:
                    p.grad /= scale
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
            yield f"training step {batch}×{args.latent}×{args.latent}", 0, step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dtype", choices=DTYPES, default="f16")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shared.add_argument("--json", action="store_true")
    what = parser.add_subparsers(dest="what", required=True)
    one = what.add_parser("ops", parents=[shared])
    one.add_argument("shapes")
    one.add_argument("--filter", action="append", default=[])
    whole = what.add_parser("steps", parents=[shared])
    whole.add_argument("--latent", type=int, default=64)
    whole.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    whole.add_argument("--rank", type=int, default=RANK)
    whole.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    if args.what == "ops":
        with open(args.shapes, encoding="utf-8") as file:
            wanted = [row for row in json.load(file) if not args.filter or any(part in row["name"] for part in args.filter)]
        cases = ops(wanted, lambda *shape: torch.randn(shape, device=device).to(dtype))
    else:
        cases = steps(args, device, dtype)
    rows = []
    if not args.json:
        print(f"{name}, torch {torch.__version__}, {args.dtype}\n{'':52} {'ms':>10} {'± %':>6} {'GFLOP/s':>9} {'MiB':>6}")
    for case, flops, call in cases:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        median, spread = measure(device, call)
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        rate = flops / median / 1e9 if flops else None
        rows.append({"name": case, "ms": 1e3 * median, "spread": spread, "gflops": rate, "peak_mib": peak})
        if not args.json:
            text = lambda value: f"{value:.1f}" if value else "-"
            print(f"{case:52} {1e3 * median:10.3f} {100 * spread:6.1f} {text(rate):>9} {text(peak):>6}", flush=True)
    if args.json:
        print(json.dumps({"peer": f"torch {torch.__version__}", "device": name, "dtype": args.dtype, "rows": rows}, indent=2))


if __name__ == "__main__":
    sys.exit(main())
