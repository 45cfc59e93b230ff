#!/usr/bin/env python3
"""The kernels of `strata-benches ops` and the steps of `strata-benches unet`, in PyTorch (with diffusers and peft).

    torch_bench.py ops [FILTER] [--dtype f16] [--device cuda] [--json]
    torch_bench.py unet FOLDER [--latent 32] [--batch 1] [--rank 8] [--compile] [--dtype f16] [--device cuda] [--json]

The same names, shapes and counts of operations; FOLDER is that of a U-Net in diffusers' layout, as the example
`random_unet` of strata-model writes it. A time is the median of 5 batches of at least 0.2 s each, after a warm-up, with a
wait for the device round each batch; spread is (longest - shortest) / median. The training step has a LoRA on all
attention layers: forward, mean squared error, backward, gradient norm and AdamW; on f16 weights the LoRA is f32
(autocast), as Strata's. Convolutions run channels-last. --compile: torch.compile of the U-Net, "max-autotune-no-cudagraphs"."""
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
    once = min(batch(1), batch(1), batch(1))
    times = [batch(max(1, min(1000, int(BATCH_SECONDS / once) + 1))) for _ in range(5)]
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def ops(make):
    """Name, operations (a multiply-add counts two) and what to call, of each kernel."""
    for m, n, k in [(1024, 1024, 1024), (1024, 320, 320), (1024, 2560, 320), (256, 1280, 1280), (77, 320, 768)]:
        x, w, down, up, dy = make(m, k), make(n, k), make(8, k), make(n, 8), make(m, n)
        product, low = 2 * m * n * k, 2 * m * 8 * (n + k)
        yield f"linear {m}×{n}×{k}", product, lambda x=x, w=w: F.linear(x, w)
        yield (f"linear + LoRA 8 {m}×{n}×{k}", product + low,
               lambda x=x, w=w, down=down, up=up: torch.addmm(F.linear(x, w), F.linear(x, down), up.T))
        yield f"linear input gradient {m}×{n}×{k}", product, lambda dy=dy, w=w: dy @ w
    for side, c, o in [(32, 320, 320), (16, 640, 640), (8, 1280, 1280), (32, 4, 320), (32, 320, 4)]:
        x = make(1, c, side, side).to(memory_format=torch.channels_last)
        w = make(o, c, 3, 3).to(memory_format=torch.channels_last)
        yield (f"conv 3×3 {side}×{side} {c} to {o}", 2 * side * side * o * 9 * c,
               lambda x=x, w=w: F.conv2d(x, w, padding=1))
    for tokens, keys, c in [(1024, 1024, 320), (256, 256, 640), (1024, 77, 320)]:
        q, k = (make(1, 8, count, c // 8) for count in (tokens, keys))
        yield (f"attention {tokens}×{keys}, 8 heads of {c // 8}", 4 * tokens * keys * c,
               lambda q=q, k=k: F.scaled_dot_product_attention(q, k, k))
    x, affine = make(1, 320, 32, 32).to(memory_format=torch.channels_last), make(320)
    yield "group norm + SiLU 32×32×320", 0, lambda: F.silu(F.group_norm(x, 32, affine, affine))
    rows = make(1024, 320)
    yield "layer norm 1024×320", 0, lambda: F.layer_norm(rows, (320,), affine, affine)
    gated = make(1024, 2560)
    yield "GEGLU 1024×1280", 0, lambda: gated[:, :1280] * F.gelu(gated[:, 1280:])


def unet_steps(args, device, dtype):
    """Name and what to call, of a forward pass and a training step."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig
    unet = UNet2DConditionModel.from_pretrained(args.folder, torch_dtype=dtype).to(device).requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    shape = (args.batch, unet.config.in_channels, args.latent, args.latent)
    sample, target = torch.randn(shape, device=device, dtype=dtype), torch.randn(shape, device=device)
    context = torch.randn(args.batch, 77, unet.config.cross_attention_dim, device=device, dtype=dtype)
    timesteps = 500 + torch.arange(args.batch, device=device)
    compiled = (lambda net: torch.compile(net, mode="max-autotune-no-cudagraphs")) if args.compile else (lambda net: net)
    run = compiled(unet)

    @torch.no_grad()
    def forward():
        run(sample, timesteps, context)
    yield "forward", forward

    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=targets, init_lora_weights="gaussian"))
    weights = [p for p in unet.parameters() if p.requires_grad]
    for p in weights:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=0.01)
    scale, run = (1.0 if dtype == torch.float32 else 1024.0), compiled(unet)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            predicted = run(sample, timesteps, context).sample
        (scale * F.mse_loss(predicted.float(), target)).backward()
        for p in weights:
            p.grad /= scale
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    yield "training step", step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--dtype", choices=DTYPES, default="f16")
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    shared.add_argument("--json", action="store_true")
    what = parser.add_subparsers(dest="what", required=True)
    what.add_parser("ops", parents=[shared]).add_argument("filter", nargs="?", default="")
    steps = what.add_parser("unet", parents=[shared])
    steps.add_argument("folder")
    steps.add_argument("--latent", type=int, default=32)
    steps.add_argument("--batch", type=int, default=1)
    steps.add_argument("--rank", type=int, default=8)
    steps.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    make = lambda *shape: torch.randn(shape, device=device).to(dtype)
    if args.what == "ops":
        cases = ((case, flops, call) for case, flops, call in ops(make) if args.filter in case)
    else:
        cases = ((case, 0, call) for case, call in unet_steps(args, device, dtype))
    rows = []
    if not args.json:
        print(f"{name}, torch {torch.__version__}, {args.dtype}\n{'kernel':44} {'ms':>10} {'spread %':>9} {'GFLOP/s':>9}")
    for case, flops, call in cases:
        median, spread = measure(device, call)
        rows.append({"name": case, "ms": 1e3 * median, "spread": spread, "gflops": flops / median / 1e9 if flops else None})
        if not args.json:
            rate = f"{flops / median / 1e9:9.1f}" if flops else " " * 8 + "-"
            print(f"{case:44} {1e3 * median:10.3f} {100 * spread:9.1f} {rate}", flush=True)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        print(f"peak memory {peak:.0f} MiB", file=sys.stderr)
    if args.json:
        print(json.dumps({"device": name, "torch": torch.__version__, "dtype": args.dtype, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
