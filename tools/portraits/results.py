"""What comes out of training: the pipeline's folder, sheets of samples, and how well captions are obeyed."""
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import captions
import models
import vocabulary
from draw import Rng, sample_attributes
from pool import HELD_OUT_SEED
from train import tokenizer_of, trained_vae

STEPS, GUIDANCE, PROMPTS, BATCH = 25, 4.0, 300, 50


def export(run, out):
    """Writes the averaged weights of `run` as a Stable Diffusion pipeline in f16."""
    vocab = json.loads((run / "tokenizer/vocab.json").read_text())
    stored = torch.load(run / "unet.pt", weights_only=True)
    scaling = torch.load(run / "latents.pt", weights_only=True)["scaling_factor"]
    unet, text, vae = models.unet(), models.text_encoder(vocab), trained_vae(run)
    unet.load_state_dict(stored["average_unet"])
    text.load_state_dict(stored["average_text"])
    vae.register_to_config(scaling_factor=scaling)
    for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        model.half().to(memory_format=torch.contiguous_format).save_pretrained(out / name)
    # Older readers, and other programs, expect the prefix of CLIPTextModel.
    path = out / "text_encoder/model.safetensors"
    state = {(k if k.startswith("text_model.") else f"text_model.{k}"): v for k, v in load_file(path).items()}
    save_file(state, path, metadata={"format": "pt"})
    merges = [tuple(line.split(" ")) for line in (run / "tokenizer/merges.txt").read_text().splitlines()[1:]]
    vocabulary.save(out / "tokenizer", vocab, merges)
    write(out / "scheduler/scheduler_config.json", models.SCHEDULER)
    write(out / "model_index.json", {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "feature_extractor": [None, None],
        "requires_safety_checker": False, "safety_checker": [None, None], "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]})
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: U-Net step {stored['step']}, {size / 1e6:.2f} MB")


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


class Pipeline:
    """An exported folder, ready to sample from (in f32, from the f16 weights)."""

    def __init__(self, folder):
        load = lambda kind, name: kind.from_pretrained(folder / name, torch_dtype=torch.float32).eval().requires_grad_(False)
        self.unet = load(UNet2DConditionModel, "unet").to(memory_format=torch.channels_last)
        self.vae, self.text = load(AutoencoderKL, "vae"), load(CLIPTextModel, "text_encoder")
        self.tokens = tokenizer_of(folder / "tokenizer")
        self.scheduler = DDIMScheduler.from_config({**models.SCHEDULER, "_class_name": "DDIMScheduler"})

    @torch.no_grad()
    def sample(self, prompts, seed):
        """DDIM with classifier-free guidance: −1 to 1, [prompts, 3, 64, 64]."""
        context = self.text(self.tokens([""] * len(prompts) + list(prompts))).last_hidden_state
        x = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            none, said = self.unet(torch.cat([x, x]).to(memory_format=torch.channels_last), t, context).sample.chunk(2)
            x = self.scheduler.step(none + GUIDANCE * (said - none), t, x).prev_sample
        return self.vae.decode(x / self.vae.config.scaling_factor).sample.clamp(-1, 1)


def to_bytes(x):
    """−1 to 1, NCHW → uint8 NHWC."""
    return ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def sheet(folder, path, rows=6, columns=8):
    """A sheet of samples of held-out captions; the captions go to standard output."""
    asked = [sample_attributes(Rng(HELD_OUT_SEED + i)) for i in range(rows * columns)]
    drawn = to_bytes(Pipeline(folder).sample([captions.full(a) for a in asked], 1))
    joined = drawn.reshape(rows, columns, 64, 64, 3).swapaxes(1, 2).reshape(rows * 64, columns * 64, 3)
    Image.fromarray(joined).resize((columns * 160, rows * 160), Image.Resampling.NEAREST).save(path)
    for i, a in enumerate(asked):
        print(f"{i // columns}.{i % columns} {captions.full(a)}")


def judge(net, pictures, asked):
    """Share of right answers per attribute; the colour of a bald head's hair is not asked."""
    with torch.no_grad():
        answers = net(pictures)
    right = {}
    for name, values in captions.QUESTIONS.items():
        rows = [i for i, a in enumerate(asked) if not (name == "hair_color" and a["hair"] == "bald")]
        truth = torch.tensor([values.index(asked[i][name]) for i in rows])
        right[name] = (answers[name][rows].argmax(1) == truth).float().mean().item()
    return right


def evaluate(run, folder):
    """Held-out pictures, the same through the VAE, and samples of their captions, as the classifier sees them."""
    from draw import draw
    net = models.Classifier()
    net.load_state_dict(torch.load(run / "classifier.pt", weights_only=True)["net"])
    net.eval()
    pipeline = Pipeline(folder)
    asked = [sample_attributes(Rng(HELD_OUT_SEED + i)) for i in range(PROMPTS)]
    real = torch.from_numpy(np.stack([draw(a) for a in asked])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        decoded = torch.cat([pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample for x in real.split(BATCH)])
    mse = ((decoded.clamp(-1, 1) - real) / 2).square().mean().item()
    generated = torch.cat([pipeline.sample([captions.full(a) for a in asked[i:i + BATCH]], 1000 + i) for i in range(0, PROMPTS, BATCH)])
    tables = {"held_out_pictures": judge(net, real, asked), "through_the_vae": judge(net, decoded.clamp(-1, 1), asked),
              "generated": judge(net, generated, asked), "vae_psnr_db": -10 * float(np.log10(mse))}
    print(json.dumps(tables, indent=2))
    write(Path(run) / "accuracy.json", tables)
