#!/usr/bin/env python3
"""The held-out features as ordinary LoRAs: trained, drawn, scored and probed with PyTorch, diffusers, peft.

    peer.py MODEL PICTURES --out FOLDER [--steps 120] [--batch 4] [--rank 8] [--lr 6e-3] [--seed 0]
    peer.py ../../demo/model ../../examples/portraits --out peer

What features trained by Strata are to be compared with: the model, pictures, layers and settings of
`strata demo`, without gates. Each LoRA is trained from the base model alone. Those
that are loaded are always on, in both halves of guidance, whatever the prompt says. PICTURES has a folder of
png and txt for each feature, as features.py writes them, and prompts.txt. On the CPU, in f32; the same seed
gives the same numbers.

Training: rank r and alpha r on to_q, to_k, to_v and to_out.0 of the up blocks' cross-attention (hair) or
self-attention (clothing); mean squared error of the noise, uniform timesteps, AdamW (decay 0.01) with a
learning rate that falls by a cosine, gradients clipped to a norm of 1; pictures in a new order each epoch;
each step draws its own latents from what the VAE says of a picture.
FOLDER/FEATURE.safetensors is a LoRA file in kohya's naming, which is read again for all that follows.

Scores: `draw.scores` of pictures by DDIM with guidance 4, averaged by condition: which LoRAs are loaded, and
whose tags stand in the prompt in place of the words for hair or clothing. Attributes come from seeds that no
training has seen; picture i begins with the same noise in every condition. For reference, the training
pictures, as they are and through the VAE, which bounds what can be reached.

Leak: as `strata probe` defines it, each LoRA alone and always on. For a group of prompts,

    drift = sum of |with LoRA - base|^2 / sum of |base|^2        leak = drift / drift with the own tag

where sums go over what the U-Net predicts for every prompt of the group and every draw. A draw is a timestep
and a standard normal latent with noise added for it, four in each of four bands of timesteps. The groups are
the lines of prompts.txt with {}, in which the feature's tag, the other's, or the class stands, its other
lines, and the empty prompt. A feature's leak is the mean over the four groups that lack its tag.

FOLDER also gets peer.json, with all numbers, and grid.png: prompts by conditions."""
import argparse
import itertools
import json
import os
import platform
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

warnings.simplefilter("ignore")
import diffusers
import transformers

for library in (diffusers, transformers):
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
import peft
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

from captions import full
from draw import NEAR, SIZE, Rng, sample_attributes, scores

PROMPT_SEED, GUIDANCE = 700_000_000, 4.0
DECAY, CLIP = 0.01, 1.0
BANDS, SAMPLES = 4, 4
A, B = "hair_style_a", "clothing_style_b"
# What the tag stands in place of, and what the feature is a special case of.
FEATURES = {A: ("hair", "short hair"), B: ("clothing", "suit")}
# Layers that learn it.
LAYERS = {A: r"up_blocks\..*\.attn2\.(to_q|to_k|to_v|to_out\.0)", B: r"up_blocks\..*\.attn1\.(to_q|to_k|to_v|to_out\.0)"}
# Name, LoRAs that are loaded, tags in the prompt.
CONDITIONS = [
    ("base", [], []),
    ("no tag", [A, B], []), ("tag a", [A, B], [A]), ("tag b", [A, B], [B]), ("both tags", [A, B], [A, B]),
    ("a: no tag", [A], []), ("a: tag a", [A], [A]), ("b: no tag", [B], []), ("b: tag b", [B], [B])]


class Clock:
    """Seconds of parts of the run: on the wall, and of the CPU, which other programs do not change."""

    def __init__(self):
        self.parts = {}

    @contextmanager
    def part(self, name):
        wall, cpu = time.monotonic(), time.process_time()
        yield
        self.parts[name] = {"wall": time.monotonic() - wall, "cpu": time.process_time() - cpu}


def whole(path, write):
    """Has a file written under another name, synced and renamed, so that it is whole or not there."""
    partial = path.with_name("partial-" + path.name)
    write(partial)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def count(text):
    """An argument that is a whole number from 1 on."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; at least 1")
    return number


def examples(folder):
    """Pictures, uint8 [n, 64, 64, 3], and captions."""
    paths = sorted(folder.glob("*.png"))
    if not paths:
        sys.exit(f"{folder}: has no .png; write pictures with features.py")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    for path, picture in zip(paths, pictures):
        if picture.size != (SIZE, SIZE):
            sys.exit(f"{path}: is {picture.size}, but scores need {(SIZE, SIZE)}; draw it with features.py")
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0] for path in paths]
    return np.stack([np.asarray(picture) for picture in pictures]), captions


def mean_scores(pictures):
    """Of uint8 pictures."""
    a, b = np.mean([scores(picture) for picture in pictures], 0)
    return {"score_a": float(a), "score_b": float(b)}


@torch.no_grad()
def posterior(pipe, pictures):
    """What the VAE says of uint8 pictures."""
    return pipe.vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist


@torch.no_grad()
def states(pipe, texts):
    """Last hidden states of the text encoder."""
    tokens = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return pipe.text_encoder(tokens.input_ids).last_hidden_state


def shuffled(n, g):
    """Numbers below `n`, in a new order each epoch."""
    while True:
        yield from torch.randperm(n, generator=g).tolist()


def train(args, pipe, layers, pictures, captions, path):
    """Trains one LoRA and writes it. Returns the loss of each step."""
    torch.manual_seed(args.seed)  # of the LoRA's first values, which peft draws: Kaiming-uniform and 0
    g = torch.Generator().manual_seed(args.seed)
    unet = UNet2DConditionModel.from_pretrained(args.model / "unet", torch_dtype=torch.float32)
    unet.requires_grad_(False).train()
    unet.add_adapter(peft.LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=layers))
    weights = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, args.lr, weight_decay=DECAY)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    schedule = DDPMScheduler.from_config(pipe.scheduler.config)
    latents, text = posterior(pipe, pictures), states(pipe, captions)
    order, losses = shuffled(len(pictures), g), []
    for _ in pipe.progress_bar(range(args.steps)):
        at = list(itertools.islice(order, args.batch))
        normal = lambda: torch.randn(latents.mean[at].shape, generator=g)
        clean = (latents.mean[at] + latents.std[at] * normal()) * pipe.vae.config.scaling_factor
        noise, t = normal(), torch.randint(schedule.config.num_train_timesteps, (args.batch,), generator=g)
        said = unet(schedule.add_noise(clean, noise, t), t, text[at]).sample
        loss = torch.nn.functional.mse_loss(said, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        falling.step()
        losses.append(loss.item())
    lora = {f"unet.{name}": value for name, value in peft.get_peft_model_state_dict(unet).items()}
    # the conversion makes alphas whole numbers, which not every program reads
    lora = {name: value.float().contiguous() for name, value in convert_state_dict_to_kohya(lora).items()}
    whole(path, lambda partial: save_file(lora, partial, metadata={"format": "pt"}))
    return losses


def use(pipe, loras):
    """Turns these LoRAs on, and no other."""
    if loras:
        pipe.enable_lora()
        pipe.set_adapters(loras)
    else:
        pipe.disable_lora()


def sample(args, pipe, loras, tags):
    """A picture for each prompt, uint8."""
    use(pipe, loras)
    asked = [sample_attributes(Rng(PROMPT_SEED + i)) for i in range(args.pictures)]
    prompts = [full(attrs, **{FEATURES[tag][0]: tag for tag in tags}) for attrs in asked]
    noise = [torch.Generator().manual_seed(i) for i in range(args.pictures)]
    drawn = pipe(prompts, num_inference_steps=args.sample_steps, guidance_scale=GUIDANCE, generator=noise)
    return np.stack([np.asarray(picture) for picture in drawn.images])


def groups(feature, lines):
    """Prompts by group, that of the own tag first."""
    carriers = [line for line in lines if "{}" in line]
    put = lambda words: [line.replace("{}", words) for line in carriers]
    other = B if feature == A else A
    return {"own_tag": put(feature), "other_tag": put(other), "class": put(FEATURES[feature][1]),
            "ordinary": [line for line in lines if "{}" not in line], "empty": [""]}


@torch.no_grad()
def probe(args, pipe, feature, lines):
    """Drift by group of prompts, and leaks, of one LoRA."""
    g = torch.Generator().manual_seed(args.seed)
    unet, total = pipe.unet, pipe.scheduler.config.num_train_timesteps
    bands = torch.arange(BANDS).repeat_interleave(SAMPLES) + torch.rand(BANDS * SAMPLES, generator=g)
    t = (bands * (total / BANDS)).long()
    shape = (len(t), unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    noisy = pipe.scheduler.add_noise(torch.randn(shape, generator=g), torch.randn(shape, generator=g), t)
    drift = {}
    for kind, prompts in groups(feature, lines).items():
        texts = states(pipe, prompts)[:, None].expand(-1, len(t), -1, -1)
        predict = lambda: torch.cat([unet(noisy, t, text).sample.double() for text in texts])
        use(pipe, [])
        base = predict()
        use(pipe, [feature])
        drift[kind] = float((predict() - base).square().sum() / base.square().sum())
    leak = {kind: value / drift["own_tag"] for kind, value in drift.items() if kind != "own_tag"}
    return {"drift": drift, "leak_by_group": leak, "leak": sum(leak.values()) / len(leak)}


def grid(columns, rows, zoom=2, head=14):
    """The first pictures of each condition, below the conditions' names."""
    side = SIZE * zoom
    picture = Image.new("RGB", (side * len(columns), head + side * rows), "white")
    for x, (name, pictures) in enumerate(columns.items()):
        ImageDraw.Draw(picture).text((x * side + 4, 1), name, "black")
        for y in range(rows):
            large = Image.fromarray(pictures[y]).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(large, (x * side, head + y * side))
    return picture


def table(report):
    """The numbers that matter, in Markdown."""
    lines = ["| pictures | LoRAs on | score_a | score_b |", "|---|---|---|---|"]
    for row in report["reference"] + report["conditions"]:
        loras = ", ".join(row.get("loras", [])) or "-"
        lines.append(f"| {row['name']} | {loras} | {row['score_a']:.3f} | {row['score_b']:.3f} |")
    lines += ["", "| feature | loss | drift with tag | leak | seconds, wall and CPU |"]
    lines += ["|---|---|---|---|---|"]
    for name, row in report["features"].items():
        spent = report["seconds"][f"train {name}"]
        lines.append(f"| {name} | {row['loss']:.4f} | {row['drift']['own_tag']:.4f} | {row['leak']:.4f} "
                     f"| {spent['wall']:.0f}, {spent['cpu']:.0f} |")
    return "\n".join(lines)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", type=Path, help="folder of a pipeline in diffusers' layout")
    parser.add_argument("images", metavar="PICTURES", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=count, default=120)
    parser.add_argument("--batch", type=count, default=4)
    parser.add_argument("--rank", type=count, default=8)
    parser.add_argument("--lr", type=float, default=6e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=count, default=16, help="in each condition")
    parser.add_argument("--sample-steps", type=count, default=15)
    parser.add_argument("--threads", type=count, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines = (args.images / "prompts.txt").read_text(encoding="utf-8").splitlines()
    args.out.mkdir(parents=True, exist_ok=True)
    load = StableDiffusionPipeline.from_pretrained
    pipe = load(args.model, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    clock, reference, features, conditions, columns = Clock(), [], {}, [], {}
    for name in FEATURES:
        pictures, captions = examples(args.images / name)
        decoded = pipe.vae.decode(posterior(pipe, pictures).mean).sample.detach()
        decoded = [np.asarray(picture) for picture in pipe.image_processor.postprocess(decoded)]
        reference += [{"name": f"training, {name}", **mean_scores(pictures)},
                      {"name": f"training through the VAE, {name}", **mean_scores(decoded)}]
        path = args.out / f"{name}.safetensors"
        with clock.part(f"train {name}"):
            losses = train(args, pipe, LAYERS[name], pictures, captions, path)
        features[name] = {"loss": float(np.mean(losses[len(losses) // 2:])), "losses": losses}
        pipe.load_lora_weights(args.out, weight_name=path.name, adapter_name=name)
    with clock.part("draw"):
        for name, loras, tags in CONDITIONS:
            columns[name] = sample(args, pipe, loras, tags)
            conditions.append({"name": name, "loras": loras, "tags": tags, **mean_scores(columns[name])})
    with clock.part("probe"):
        for name in FEATURES:
            features[name] |= probe(args, pipe, name, lines)

    versions = {"python": platform.python_version()}
    versions |= {library.__name__: library.__version__ for library in (torch, diffusers, transformers, peft)}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    settings |= {"guidance": GUIDANCE, "weight_decay": DECAY, "max_grad_norm": CLIP, "near": NEAR}
    report = {"settings": settings, "versions": versions, "seconds": clock.parts, "reference": reference,
              "conditions": conditions, "features": features}
    whole(args.out / "grid.png", grid(columns, min(6, args.pictures)).save)
    whole(args.out / "peer.json", lambda partial: partial.write_text(json.dumps(report, indent=2) + "\n"))
    print(table(report))


if __name__ == "__main__":
    main()
