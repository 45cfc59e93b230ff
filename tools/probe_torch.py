#!/usr/bin/env python3
"""Holds what `strata probe` measured to PyTorch: the same latents, timesteps and text states through diffusers and peft, in f64.

    strata probe MODEL --lora FILE --tag TAG --json --dump inputs.safetensors > probe.json
    probe_torch.py probe.json inputs.safetensors

Prints the largest relative difference of all drifts and leaks; exit status 1 if it is over 1e-3, or if what is exactly 0 on
one side is not on the other. Norms are recomputed from the noise predictions, and gates are put on peft's layers by hooks."""
import json
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

warnings.simplefilter("ignore")
import diffusers
import transformers
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

for library in (diffusers, transformers):
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
LIMIT = 1e-3


class Model:
    """The U-Net with every LoRA attached, whose deltas are multiplied by what `strength` says of a module."""

    def __init__(self, report):
        self.unet = UNet2DConditionModel.from_pretrained(report["model"] + "/unet", local_files_only=True).double().eval()
        self.pipe = StableDiffusionPipeline.from_pretrained(report["model"], unet=self.unet, local_files_only=True)
        for i, feature in enumerate(report["features"]):
            path = Path(feature["file"])
            self.pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"f{i}")
        self.pipe.set_adapters([f"f{i}" for i in range(len(report["features"]))])
        self.unet.double()
        self.strength = lambda feature, path: 0.0
        for path, module in self.unet.named_modules():
            if isinstance(module, LoraLayer):
                for name, up in module.lora_B.items():
                    up.register_forward_hook(lambda _, __, out, f=int(name[1:]), p=path: out * self.strength(f, p))

    @torch.no_grad()
    def predict(self, noisy, timesteps, text, strength):
        self.strength = strength
        return self.unet(noisy, timesteps, text.expand(len(noisy), -1, -1)).sample


def strength_of(report, feature, gate, prompt, block=None):
    """What a module's delta is multiplied by: a number, or a factor for each token."""
    mentions = [m for m in prompt["mentions"] if m["feature"] == feature]
    weight = report["features"][feature]["weight"]
    strongest = max((m["weight"] for m in mentions), key=abs, default=0.0)
    tokens = torch.zeros(1, prompt["tokens"], 1, dtype=torch.float64)
    for m in mentions:
        tokens[:, m["tokens"][0]:m["tokens"][1]] = m["weight"] * weight

    def strength(f, path):
        if f != feature or block and not path.startswith(block + "."):
            return 0.0
        if gate == "always":
            return weight
        text = path.endswith((".attn2.to_k", ".attn2.to_v"))
        return tokens if gate == "token" and text else strongest * weight
    return strength


def square(x):
    """The sum of squares of each sample."""
    return x.pow(2).flatten(1).sum(1)


def main():
    report, inputs = json.loads(Path(sys.argv[1]).read_text()), load_file(sys.argv[2])
    double = {name: value.double() for name, value in inputs.items()}
    noisy, timesteps = double["noisy"].permute(0, 3, 1, 2), double["timesteps"]
    model, worst, count = Model(report), (0.0, "nothing"), 0
    predict = lambda i, strength: model.predict(noisy, timesteps, double[f"text.{i}"][None], strength)
    base = [predict(i, lambda f, p: 0.0) for i in range(len(report["prompts"]))]
    draws, samples = len(noisy), report["samples"]
    bands = [slice(None)] + [slice(b, b + samples) for b in range(0, draws, samples)]

    def check(matrix, feature, what, block=None):
        nonlocal worst, count
        errors = {}
        for i in sorted({i for row in matrix["rows"] for i in row["prompts"]}):
            strength = strength_of(report, feature, matrix["gate"], report["prompts"][i], block)
            errors[i] = square(predict(i, strength) - base[i])
        drift = lambda row, band: float(sum(errors[i][band].sum() for i in row["prompts"]) / sum(square(base[i])[band].sum() for i in row["prompts"]))
        own, leaks = matrix["rows"][0], []
        assert own["kind"] == "own_tag"
        for row in matrix["rows"]:
            for band, cell in zip(bands, [row] + row["bands"]):
                pairs = [("drift", cell["drift"], drift(row, band))]
                if row is not own and drift(own, band) > 0:
                    pairs.append(("leak", cell["leak"], drift(row, band) / drift(own, band)))
                if row is not own and band == slice(None):
                    leaks.append(pairs[-1][2])
                for name, strata, torch_ in pairs:
                    worst, count = max(worst, (difference(strata, torch_), f"{what} {row['kind']} {name}: {strata} and {torch_}")), count + 1
        mean = sum(leaks) / len(leaks)
        worst, count = max(worst, (difference(matrix["leak"], mean), f"{what} mean leak: {matrix['leak']} and {mean}")), count + 1
        print(f"{what:<40} drift {drift(own, slice(None)):.6e}  mean leak {mean:.6f}")
        return drift(own, slice(None))

    for i, feature in enumerate(report["features"]):
        for matrix in feature["gates"]:
            check(matrix, i, f"{feature['name']} {matrix['gate']}")
        alone = [check(block["alone"], i, f"{feature['name']} {block['block']}", block["block"]) for block in feature["blocks"]]
        for block, drift in zip(feature["blocks"], alone):
            share = drift / sum(alone)
            worst, count = max(worst, (difference(block["share"], share), f"{block['block']} share: {block['share']} and {share}")), count + 1
    print(f"{count} numbers; largest relative difference {worst[0]:.3e} ({worst[1]})")
    return 0 if worst[0] <= LIMIT else 1


def difference(strata, reference):
    if reference == 0 or not strata:
        return 0.0 if strata == reference else float("inf")
    return abs(strata - reference) / abs(reference)


if __name__ == "__main__":
    sys.exit(main())
