#!/usr/bin/env python3
"""Writes what diffusers says of texts with embeddings, which tests hold Strata to.

    embeddings_torch.py MODEL OUT

OUT gets `a1111.safetensors` (`emb_params`, two vectors), `learned_embeds.safetensors` (diffusers', one vector of one axis, named `<toy-b>`)
and `states.safetensors`: `states.i`, the text states in f64 stored as f32, of prompt i, which is in its metadata. The first file's word is
`style-a`, which `load_textual_inversion` is told."""
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

warnings.simplefilter("ignore")
from diffusers import StableDiffusionPipeline

PROMPTS = ["style-a", "a man, style-a, with <toy-b> and a hat", "<toy-b><toy-b> style-a", "a cat"]

model, out = sys.argv[1], Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
pipe = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
width = pipe.text_encoder.config.hidden_size
torch.manual_seed(7)
save_file({"emb_params": torch.randn(2, width) * 0.3}, out / "a1111.safetensors")
save_file({"<toy-b>": torch.randn(width) * 0.3}, out / "learned_embeds.safetensors")
pipe.load_textual_inversion(out / "a1111.safetensors", token="style-a")
pipe.load_textual_inversion(out / "learned_embeds.safetensors")
pipe.text_encoder.double()
states = {}
for i, prompt in enumerate(PROMPTS):
    with torch.no_grad():
        states[f"states.{i}"] = pipe.encode_prompt(prompt, "cpu", 1, False)[0].float()
save_file(states, out / "states.safetensors", {f"prompt.{i}": prompt for i, prompt in enumerate(PROMPTS)})
