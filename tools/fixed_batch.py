#!/usr/bin/env python3
"""The README's picture: one fixed batch, trained by PyTorch (diffusers, peft) and by Strata.

    fixed_batch.py PIPELINE FOLDER          writes batch and LoRA to FOLDER, trains with PyTorch -> FOLDER/torch.txt
    cargo run --release -p strata-trainer --example fixed_batch -- PIPELINE/unet FOLDER/batch.safetensors FOLDER/lora.safetensors 200 > FOLDER/strata.txt
    fixed_batch.py --plot FOLDER OUT.png    draws both (matplotlib)

LoRA of rank 16, alpha 16 on attention, proj_in, proj_out and feed-forward; AdamW 5e-3, weight decay 0.01, clip 1.0."""
import math
import sys

STEPS, RANK = 200, 16
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


def train(pipeline, folder):
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file
    unet = UNet2DConditionModel.from_pretrained(pipeline + "/unet", local_files_only=True).requires_grad_(False)
    names = [n for n, m in unet.named_modules() if n.endswith(TARGETS) and isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names))
    g = torch.Generator().manual_seed(5)
    size = unet.config.sample_size
    latents, noise = (torch.randn(8, 4, size, size, generator=g) for _ in range(2))
    t = torch.randint(0, 1000, (8,), generator=g)
    context = load_file(pipeline + "/goldens.safetensors")["unet.context"][[0, 1] * 4]
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noisy = schedule.add_noise(latents, noise, t)
    parameters, kohya = [], {}
    for name, p in sorted(unet.named_parameters()):
        if ".lora_" not in name:
            continue
        module, half = name.removesuffix(".default.weight").rsplit(".lora_", 1)
        with torch.no_grad():
            p.copy_(torch.randn(p.shape, generator=g) / math.sqrt(p[0].numel()) if half == "A" else torch.zeros_like(p))
        p.requires_grad_(True)
        parameters.append(p)
        key = "lora_unet_" + module.replace(".", "_")
        kohya[f"{key}.lora_{'down' if half == 'A' else 'up'}.weight"] = p.detach().clone().contiguous()
        kohya[f"{key}.alpha"] = torch.tensor(float(RANK))
    nhwc = lambda x: x.permute(0, 2, 3, 1).contiguous()
    save_file({"noisy": nhwc(noisy), "target": nhwc(noise), "timesteps": t.float(), "context": context.contiguous()}, folder + "/batch.safetensors")
    save_file(kohya, folder + "/lora.safetensors")
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=1e-2)
    with open(folder + "/torch.txt", "w") as out:
        for _ in range(STEPS):
            loss = torch.nn.functional.mse_loss(unet(noisy, t, context).sample, noise)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            print(loss.item(), file=out, flush=True)


def plot(folder, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    torch, strata = ([float(x) for x in open(f"{folder}/{who}.txt")] for who in ("torch", "strata"))
    fig, ax = plt.subplots(figsize=(7.2, 3.2), dpi=120)
    ax.plot(torch, color="#c9a227", linewidth=5, alpha=0.55, label=f"PyTorch + peft, f32 (last {torch[-1]:.4f})")
    ax.plot(strata, color="#3b2a6b", linewidth=1.4, label=f"Strata, f32 (last {strata[-1]:.4f})")
    ax.set(xlabel="step", ylabel="loss", xlim=(0, len(torch)), ylim=(0, None))
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--plot":
        plot(*sys.argv[2:])
    elif len(sys.argv) == 3:
        train(*sys.argv[1:])
    else:
        sys.exit(__doc__)
