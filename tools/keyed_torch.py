#!/usr/bin/env python3
"""Holds what Strata says of keyed tags to diffusers: the LoRA file and the textual-inversion files beside it, loaded as any program does.

    strata probe MODEL --lora FILE --json --dump inputs.safetensors > probe.json
    keyed_torch.py probe.json inputs.safetensors embeddings/TAG.safetensors ...

Encodes every prompt of the probe with the embeddings (`load_textual_inversion`, `encode_prompt`) and compares the text states with those
that Strata dumped, in f64. `probe_torch.py` then holds drifts and leaks, always on, to the same file in peft. Exit status 1 if a relative
difference is over 1e-4."""
import json
import sys
import warnings

import torch
from safetensors.torch import load_file

warnings.simplefilter("ignore")
from diffusers import StableDiffusionPipeline

report, inputs = json.load(open(sys.argv[1])), load_file(sys.argv[2])
pipe = StableDiffusionPipeline.from_pretrained(report["model"], local_files_only=True)
for embedding in sys.argv[3:]:
    pipe.load_textual_inversion(embedding)
pipe.text_encoder.double()
worst = 0.0
for i, prompt in enumerate(report["prompts"]):
    with torch.no_grad():
        states, _ = pipe.encode_prompt(prompt["text"], "cpu", 1, False)
    own = inputs[f"text.{i}"].double().reshape(states.shape)
    worst = max(worst, ((states - own).norm() / states.norm()).item())
print(f"{len(report['prompts'])} prompts: text states differ by {worst:.2e} at most")
sys.exit(worst > 1e-4)
