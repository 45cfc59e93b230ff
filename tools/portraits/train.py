#!/usr/bin/env python3
"""Trains the "portraits" base model from scratch: pictures, VAE, vocabulary, text encoder, classifier, U-Net.

    train.py all --run FOLDER [--steps N]         every stage below in order; done stages are skipped
    train.py vae|text|classifier|latents|unet --run FOLDER
    train.py export --run FOLDER --out PIPELINE   the averaged weights so far, f16, in diffusers' layout
    train.py sheet PIPELINE OUT.png               a sheet of samples
    train.py evaluate --run FOLDER PIPELINE       how often pictures show what their captions say

Every stage saves its state to FOLDER every three minutes and goes on from there when it is run again. All chance is a
function of SEED and the step, so an interrupted run sees the batches an uninterrupted one sees."""
import argparse
import copy
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPTokenizer

import models
import vocabulary
from captions import QUESTIONS, caption
from draw import Rng
from pool import attributes, pictures

SEED, SAVE_SECONDS = 20, 180
PICTURES, LATENTS = 40_000, 12_000
VAE_STEPS, VAE_CROPS, VAE_BATCH = 1650, 1400, 8  # the first steps see 32×32 pieces: many cheap steps
TEXT_STEPS, TEXT_BATCH = 400, 128
CLASSIFIER_STEPS, CLASSIFIER_BATCH = 800, 64
UNET_BATCH, UNET_RATE, EMA = 16, 1e-3, 0.998
MIN_SNR = 5.0


class State:
    """What a stage saves: modules, optimizer and step. `resume` puts back what is there."""

    def __init__(self, path, **parts):
        self.path, self.parts, self.step, self.saved = path, parts, 0, time.monotonic()
        if path.exists():
            stored = torch.load(path, weights_only=True)
            self.step = stored.pop("step")
            for name, part in parts.items():
                part.load_state_dict(stored[name])
            print(f"{path.name}: going on from step {self.step}", flush=True)

    def save(self, always=False):
        if always or time.monotonic() - self.saved > SAVE_SECONDS:
            partial = self.path.with_suffix(".partial")
            torch.save({"step": self.step, **{name: part.state_dict() for name, part in self.parts.items()}}, partial)
            partial.rename(self.path)
            self.saved = time.monotonic()


def log(run, stage, step, **numbers):
    line = f"{time.strftime('%H:%M:%S')} {stage} {step} " + " ".join(f"{k} {v:.5g}" for k, v in numbers.items())
    print(line, flush=True)
    with open(run / "log.txt", "a") as out:
        out.write(line + "\n")


def generator(stage, step):
    """Chance of one step of one stage."""
    return torch.Generator().manual_seed(SEED * 1_000_003 + stage * 100_000_007 + step)


def batch_indices(g, count, below=PICTURES):
    return torch.randint(below, (count,), generator=g).numpy()


def to_floats(array):
    """uint8 NHWC → −1 to 1, NCHW."""
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def warm_then_linear(step, steps, rate, warm=100, decay=0.3):
    """Learning rate: a linear warm-up, constant, a linear decay over the last part."""
    return rate * min((step + 1) / warm, 1, max((steps - step) / (steps * decay), 0.01))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---------------------------------------------------------------- VAE
def vivid(g, count):
    """Random colours [count, 3, 1, 1] in −1 to 1: saturated ones, and a list of extremes."""
    extremes = torch.tensor([[150, 30, 240], [0, 236, 236], [8, 6, 4], [255, 190, 0], [255, 255, 255], [0, 255, 0], [255, 0, 255]])
    hue, value = torch.rand(count, 1, generator=g) * 6, 0.2 + 0.8 * torch.rand(count, 1, generator=g)
    saturation = 0.5 + 0.5 * torch.rand(count, 1, generator=g)
    k = (torch.tensor([[5.0, 3.0, 1.0]]) + hue) % 6
    rgb = value - value * saturation * torch.minimum(k, 4 - k).clamp(0, 1)
    chosen = extremes[torch.randint(len(extremes), (count,), generator=g)] / 255
    rgb = torch.where(torch.rand(count, 1, generator=g) < 0.35, chosen, rgb)
    return (rgb * 2 - 1)[:, :, None, None]


def general(x, g):
    """Pastes patches of checks, stripes or plain vivid colour on half of the pictures, so that the VAE is not one of
    portraits' colours alone; turns the channels of a quarter of them round."""
    count = len(x)
    rand = lambda low, high: low + (high - low) * torch.rand(count, 1, 1, generator=g)
    yy, xx = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    turned = x[:, torch.randperm(3, generator=g)] * (1 - 2 * torch.randint(2, (count, 1, 1, 1), generator=g))
    x = torch.where(rand(0, 1)[..., None] < 0.25, turned, x)
    cx, cy, rx, ry = rand(0, 64), rand(0, 64), rand(5, 36), rand(5, 36)
    dx, dy = (xx - cx) / rx, (yy - cy) / ry
    inside = torch.where(rand(0, 1) < 0.5, dx * dx + dy * dy, torch.maximum(dx.abs(), dy.abs())) < 1
    cell, slope, shift, kind = rand(3, 9), rand(-1, 1), rand(0, 16), rand(0, 1)
    checks = (torch.floor((xx + shift) / cell) + torch.floor((yy + shift) / cell)) % 2
    stripes = torch.floor((xx + slope * yy + shift) / cell) % 2
    pattern = torch.where(kind < 0.45, checks, torch.where(kind < 0.8, stripes, torch.zeros_like(checks)))[:, None]
    patch = pattern * vivid(g, count) + (1 - pattern) * vivid(g, count)
    return torch.where((inside & (rand(0, 1) < 0.6))[:, None], patch, x)


def slopes(x):
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train_vae(run, minutes):
    torch.manual_seed(SEED)
    pool, vae = pictures(run / "pictures.npy", PICTURES), models.vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), 1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    state = State(run / "vae.pt", vae=vae, optimizer=optimizer)

    def loss_of(x, noise, sharp):
        moments = vae.quant_conv(vae.encoder(x))
        mean, logvar = moments.chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        y = vae.decoder(vae.post_quant_conv(mean + (logvar / 2).exp() * noise))
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2
        detail = sum((a - b).abs().mean() for a, b in zip(slopes(x), slopes(y)))
        square = (x - y).square().mean()
        return (x - y).abs().mean() + 2 * square + sharp * detail / 2 + 3e-4 * kl, square

    begun, mean = time.monotonic(), []
    while state.step < VAE_STEPS:
        g = generator(1, state.step)
        x = general(to_floats(pool[np.sort(batch_indices(g, VAE_BATCH))]), g)
        crops = state.step < VAE_CROPS
        if crops:
            corners = torch.randint(33, (VAE_BATCH, 2), generator=g).tolist()
            x = torch.stack([picture[:, i:i + 32, j:j + 32] for picture, (i, j) in zip(x, corners)])
        size = x.shape[-1] // 4
        loss, error = loss_of(x.to(memory_format=torch.channels_last), torch.randn(VAE_BATCH, 4, size, size, generator=g), not crops)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        set_rate(optimizer, warm_then_linear(state.step, VAE_STEPS, 2e-3))
        optimizer.step()
        state.step += 1
        mean.append([loss.item(), error.item()])
        if state.step % 25 == 0:
            both = np.mean(mean[-25:], 0)
            log(run, "vae", state.step, loss=both[0], mse=both[1], rate=len(mean) * VAE_BATCH / (time.monotonic() - begun))
        state.save()
        if minutes and time.monotonic() - begun > minutes * 60:
            break
    state.save(always=True)


def trained_vae(run):
    vae = models.vae()
    vae.load_state_dict(torch.load(run / "vae.pt", weights_only=True)["vae"])
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def make_latents(run):
    """Posterior means of the pool's first part, scaled to a standard deviation of 1."""
    pool, vae = pictures(run / "pictures.npy", PICTURES), trained_vae(run)
    path, begun, parts = run / "latents.pt", time.monotonic(), []
    if path.exists():
        return
    with torch.no_grad():
        for i in range(0, LATENTS, 100):
            x = to_floats(pool[i:i + 100]).to(memory_format=torch.channels_last)
            parts.append(vae.encode(x).latent_dist.mean.contiguous())
    latents = torch.cat(parts)
    scaling = 1 / latents.std().item()
    torch.save({"latents": latents * scaling, "scaling_factor": scaling}, path)
    log(run, "latents", len(latents), scaling_factor=scaling, seconds=time.monotonic() - begun)


# ---------------------------------------------------------------- text
def make_vocabulary(run):
    rng = Rng(SEED)
    texts = [caption(attributes(i), rng)[0] for i in range(4000)]
    vocab, merges = vocabulary.build(texts)
    vocabulary.save(run / "tokenizer", vocab, merges)
    print(f"vocabulary: {len(vocab)} entries, {len(merges)} merges")


def tokenizer_of(folder):
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return lambda texts: tokenizer(list(texts), padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids


def train_text(run):
    """The text encoder alone first, as CLIP is: its state at the end of a caption, and after, must say what the caption says."""
    torch.manual_seed(SEED)
    tokens = tokenizer_of(run / "tokenizer")
    vocab = json.loads((run / "tokenizer/vocab.json").read_text())
    text, heads = models.text_encoder(vocab), models.TextHeads()
    parameters = [*text.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.99), weight_decay=1e-2)
    state, begun, mean = State(run / "text.pt", text=text, heads=heads, optimizer=optimizer), time.monotonic(), []
    while state.step < TEXT_STEPS:
        rng, g = Rng(SEED * 7919 + state.step), generator(2, state.step)
        written = [caption(attributes(i), rng) for i in batch_indices(g, TEXT_BATCH)]
        ids = tokens(t for t, _ in written)
        # Causal attention: what comes after the padding looked at here changes nothing.
        end = (ids != ids.max()).sum(1)
        ids = ids[:, :min(int(end.max()) + 9, 77)]
        states = text(ids).last_hidden_state
        at = end + torch.randint(9, (TEXT_BATCH,), generator=g) * torch.randint(2, (TEXT_BATCH,), generator=g)
        answers = heads(states[torch.arange(TEXT_BATCH), at.clamp(max=ids.shape[1] - 1)])
        loss, right = 0, []
        for name, values in QUESTIONS.items():
            truth = torch.tensor([values.index(said[name]) if name in said else len(values) for _, said in written])
            loss = loss + F.cross_entropy(answers[name], truth)
            right.append((answers[name].argmax(1) == truth).float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        set_rate(optimizer, warm_then_linear(state.step, TEXT_STEPS, 1e-3))
        optimizer.step()
        state.step += 1
        mean.append([loss.item(), np.mean(right)])
        if state.step % 50 == 0:
            both = np.mean(mean[-50:], 0)
            log(run, "text", state.step, loss=both[0], right=both[1], rate=len(mean) * TEXT_BATCH / (time.monotonic() - begun))
        state.save()
    state.save(always=True)


# ---------------------------------------------------------------- classifier
def train_classifier(run):
    """On pictures that are noisy, blurred, or come out of the VAE, so that it can judge generated ones."""
    torch.manual_seed(SEED)
    pool, vae, net = pictures(run / "pictures.npy", PICTURES), trained_vae(run), models.Classifier().to(memory_format=torch.channels_last)
    decoded = vae_copies(run, vae)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=1e-3)
    state, begun, mean = State(run / "classifier.pt", net=net, optimizer=optimizer), time.monotonic(), []
    while state.step < CLASSIFIER_STEPS:
        g = generator(3, state.step)
        at = np.sort(batch_indices(g, CLASSIFIER_BATCH))
        x = to_floats(pool[at])
        copies = torch.from_numpy(at) % 4 == 0
        x[copies] = to_floats(decoded[at[copies.numpy()] // 4 % len(decoded)])
        # decoded[k] is picture 4k.
        truth_of = [int(i) if i % 4 else int(i) // 4 % len(decoded) * 4 for i in at]
        soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        x = torch.where(torch.rand(len(x), 1, 1, 1, generator=g) < 0.3, soft, x)
        x = x + 0.15 * torch.rand(len(x), 1, 1, 1, generator=g) * torch.randn(x.shape, generator=g)
        answers, told, loss, right = net(x.to(memory_format=torch.channels_last)), [attributes(i) for i in truth_of], 0, []
        for name, values in QUESTIONS.items():
            # A bald head has no colour of hair.
            truth = torch.tensor([-1 if name == "hair_color" and a["hair"] == "bald" else values.index(a[name]) for a in told])
            loss = loss + F.cross_entropy(answers[name], truth, ignore_index=-1)
            right.append((answers[name].argmax(1) == truth)[truth >= 0].float().mean().item())
        optimizer.zero_grad()
        loss.backward()
        set_rate(optimizer, warm_then_linear(state.step, CLASSIFIER_STEPS, 2e-3))
        optimizer.step()
        state.step += 1
        mean.append([loss.item(), *right])
        if state.step % 100 == 0:
            part = np.mean(mean[-100:], 0)
            log(run, "classifier", state.step, loss=part[0], **dict(zip(QUESTIONS, part[1:])))
        state.save()
    state.save(always=True)


def vae_copies(run, vae, count=1000):
    """Pictures 0, 4, 8, … of the pool, once through the VAE."""
    pool, parts = pictures(run / "pictures.npy", PICTURES), []
    with torch.no_grad():
        for i in range(0, count * 4, 400):
            y = vae.decode(vae.encode(to_floats(pool[i:i + 400:4])).latent_dist.mean).sample
            parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


# ---------------------------------------------------------------- U-Net
def alphas_cumprod():
    c = models.SCHEDULER
    betas = torch.linspace(c["beta_start"] ** 0.5, c["beta_end"] ** 0.5, c["num_train_timesteps"], dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def train_unet(run, steps, minutes):
    """U-Net and text encoder together on the latents, ε-prediction, min-SNR weights, averaged weights beside them."""
    torch.manual_seed(SEED)
    latents = torch.load(run / "latents.pt", weights_only=True)["latents"]
    tokens = tokenizer_of(run / "tokenizer")
    vocab = json.loads((run / "tokenizer/vocab.json").read_text())
    unet, text = models.unet().to(memory_format=torch.channels_last), models.text_encoder(vocab)
    if not (run / "unet.pt").exists():
        text.load_state_dict(torch.load(run / "text.pt", weights_only=True)["text"])
    average_unet, average_text = copy.deepcopy(unet), copy.deepcopy(text)
    parameters = [*unet.parameters(), *text.parameters()]
    averages = [*average_unet.parameters(), *average_text.parameters()]
    optimizer = torch.optim.AdamW([{"params": list(unet.parameters())}, {"params": list(text.parameters())}],
                                  UNET_RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    state = State(run / "unet.pt", unet=unet, text=text, average_unet=average_unet, average_text=average_text, optimizer=optimizer)
    signal, snr = alphas_cumprod(), alphas_cumprod() / (1 - alphas_cumprod())
    weights = snr.clamp(max=MIN_SNR) / snr

    def loss_of(noisy, t, ids, noise):
        said = unet(noisy, t, text(ids).last_hidden_state).sample
        return ((said - noise).square().mean((1, 2, 3)) * weights[t]).mean()

    begun, mean = time.monotonic(), []
    while state.step < steps:
        g, rng = generator(4, state.step), Rng(SEED * 104_729 + state.step)
        at = batch_indices(g, UNET_BATCH, LATENTS)
        ids = tokens(caption(attributes(i), rng)[0] for i in at)
        # One timestep from each of as many equal parts as there are samples: less noise between batches.
        t = ((torch.arange(UNET_BATCH) + torch.rand(UNET_BATCH, generator=g)) * (1000 / UNET_BATCH)).long()
        x, noise = latents[at], torch.randn(UNET_BATCH, 4, 16, 16, generator=g)
        a = signal[t][:, None, None, None]
        noisy = (a.sqrt() * x + (1 - a).sqrt() * noise).to(memory_format=torch.channels_last)
        loss = loss_of(noisy, t, ids, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = warm_then_linear(state.step, steps, UNET_RATE)
        set_rate(optimizer, rate)
        # The text encoder comes trained: it follows slowly.
        optimizer.param_groups[1]["lr"] = rate / 4
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(EMA, (1 + state.step) / (10 + state.step)))
        state.step += 1
        mean.append(loss.item())
        if state.step % 25 == 0:
            log(run, "unet", state.step, loss=np.mean(mean[-100:]), lr=rate, rate=len(mean) * UNET_BATCH / (time.monotonic() - begun))
        state.save()
        if minutes and time.monotonic() - begun > minutes * 60:
            break
    state.save(always=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", "vae", "text", "classifier", "latents", "unet", "export", "sheet", "evaluate"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int, default=6000, help="steps of the U-Net; the rate falls over the last 30 %%")
    parser.add_argument("--minutes", type=float, help="stop the VAE or the U-Net early; it can go on later")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(args.threads)
    import results
    if args.stage == "sheet":
        return results.sheet(*args.paths)
    if args.stage == "evaluate":
        return results.evaluate(args.run, *args.paths)
    if args.stage == "export":
        return results.export(args.run, args.out)
    args.run.mkdir(parents=True, exist_ok=True)
    stages = {"vae": lambda: train_vae(args.run, args.minutes), "text": lambda: (make_vocabulary(args.run), train_text(args.run)),
              "classifier": lambda: train_classifier(args.run), "latents": lambda: make_latents(args.run),
              "unet": lambda: train_unet(args.run, args.steps, args.minutes)}
    for name, stage in stages.items():
        if args.stage in ("all", name):
            stage()


if __name__ == "__main__":
    main()
