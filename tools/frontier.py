#!/usr/bin/env python3
"""What silence costs and gives: the frontier of `strata-benches leak`, measured again in diffusers from the plain LoRA files.

    strata-benches leak CONFIG --ranks 0,1,2,4,8,16,32,64 --prompts FILE --keep FOLDER
    frontier.py FOLDER                 diffusers, its own CLIP, peft, f64 -> a table, and FOLDER/frontier.json
    frontier.py --plot FOLDER OUT.png  draws both (matplotlib)

Prints what Strata and diffusers measured, the largest relative difference, and how much of what the text encoder says lies
outside of what the LoRA is kept deaf to. Exit status 1 if a difference is over 1e-3."""
import json
import os
import sys
from pathlib import Path

BANK = Path(__file__).resolve().parent.parent / "trainer/src/bank.txt"


def measure(folder):
    import torch
    from probe_torch import LIMIT, Model, difference, square
    from safetensors.torch import load_file
    report = json.loads((folder / "leak.json").read_text())
    inputs = {name: value.double() for name, value in load_file(folder / "inputs.safetensors").items()}
    image = lambda name: inputs[name].permute(0, 3, 1, 2)
    names = [feature["name"] for feature in report["features"]]
    worst, texts = (0.0, "nothing"), {}

    for way in report["measured"]:
        model = Model({"model": report["model"], "features": [{"file": str(folder / way["file"])}]})
        if not texts:
            say = encoder(model.pipe)
            texts = {text: say(text) for text in report["prompts"]}
            outside(report, say)
        feature = report["features"][names.index(way["feature"])]
        on, off = (lambda *_: 1.0), (lambda *_: 0.0)

        changed, energy = {}, {}
        for i in sorted({i for row in way["always"]["rows"] for i in row["prompts"]}):
            predict = lambda strength: model.predict(image("noisy"), inputs["timesteps"], texts[report["prompts"][i]], strength)
            base = predict(off)
            changed[i], energy[i] = float(square(predict(on) - base).sum()), float(square(base).sum())
        drifts = [sum(changed[i] for i in row["prompts"]) / sum(energy[i] for i in row["prompts"]) for row in way["always"]["rows"]]
        leaks = [drift / drifts[0] for drift in drifts[1:]]

        noisy, target, timesteps = image(f"{feature['name']}.noisy"), image(f"{feature['name']}.target"), inputs[f"{feature['name']}.timesteps"]
        captions, errors = torch.cat([say(caption) for caption in feature["captions"]]), []
        for at in range(0, len(noisy), len(captions)):
            band = slice(at, at + len(captions))
            errors.append((model.predict(noisy[band], timesteps[band], captions, on) - target[band]).pow(2).mean())
        way["diffusers"] = {"loss": float(sum(errors) / len(errors)), "drift": drifts[0], "leak": sum(leaks) / len(leaks), "leaks": leaks}

        ours = {"loss": way["loss"], "drift": way["always"]["rows"][0]["drift"], "leak": way["always"]["leak"]}
        pairs = [(what, ours[what], way["diffusers"][what]) for what in ours]
        pairs += [(row["kind"], row["leak"], leak) for row, leak in zip(way["always"]["rows"][1:], leaks)]
        worst = max([worst] + [(difference(a, b), f"{way['way']} {way['feature']} {what}: {a} and {b}") for what, a, b in pairs])
        if way is report["measured"][0]:
            groups = " | ".join(row["kind"].replace("_", " ") for row in way["always"]["rows"][1:])
            print(f"\n| way | feature | loss | / plain | drift | leak | {groups} | loss, diffusers | leak, diffusers |")
            print("|---" * (8 + len(leaks)) + "|")
        relative = way["loss"] / plain(report, way["feature"])["loss"]
        by_group = " | ".join(f"{row['leak']:.3f}" for row in way["always"]["rows"][1:])
        print(f"| {way['way']} | {way['feature']} | {ours['loss']:.4f} | {relative:.2f} | {ours['drift']:.4f} | {ours['leak']:.3f} | {by_group} "
              f"| {way['diffusers']['loss']:.4f} | {way['diffusers']['leak']:.3f} |", flush=True)

    print(f"\nlargest relative difference {worst[0]:.3e} ({worst[1]})")
    whole = folder / "frontier.json.tmp"
    with open(whole, "w") as out:
        json.dump(report, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    whole.rename(folder / "frontier.json")
    return 0 if worst[0] <= LIMIT else 1


def plain(report, feature):
    """What the LoRA that nothing holds back measures."""
    return next(way for way in report["measured"] if way["feature"] == feature and way["silence"] is None and not way["preserve"])


def encoder(pipe):
    """From a text to its states [1, tokens, channels], in f64."""
    import torch
    pipe.text_encoder.double()

    @torch.no_grad()
    def say(text):
        return pipe.encode_prompt(text, "cpu", 1, False)[0]
    say.tokenizer = pipe.tokenizer
    return say


def outside(report, say):
    """Prints the share of energy that lies outside of BOS and k directions: of the states of a tag's tokens, of those after
    them up to the end, of all in prompts with the tag, and of all in ordinary prompts that are not in the bank."""
    import torch
    ids = lambda text: say.tokenizer(text).input_ids
    bank = [""] + [line.strip() for line in BANK.read_text().splitlines()]
    print("| k | feature | the tag's tokens | those after it | all with the tag | ordinary prompts |\n|---|---|---|---|---|---|")
    for feature in report["features"]:
        others = [tag for other in report["features"] if other is not feature for tag in other["tags"]]
        tag, swaps = feature["tags"][0], ["", feature["class"], *others]
        silent = dict.fromkeys(bank + [caption.replace(tag, word) for caption in feature["captions"] for word in swaps])
        states = torch.cat([say(text) for text in silent])
        bos = states[0, 0] / states[0, 0].norm()
        rest = states[:, 1:].flatten(0, 1)
        rest -= (rest @ bos)[:, None] * bos
        directions = torch.linalg.eigh(rest.T @ rest).eigenvectors.flip(1).T
        rows = plain(report, feature["name"])["always"]["rows"]
        texts = {row["kind"]: [report["prompts"][i] for i in row["prompts"]] for row in rows}
        own, after, word = [], [], ids(tag)[1:-1]
        for text in texts["own_tag"]:
            tokens, states = ids(text), say(text)[0]
            start = next(i for i in range(len(tokens)) if tokens[i:i + len(word)] == word)
            own.append(states[start:start + len(word)])
            after.append(states[start + len(word):len(tokens)])
        groups = [torch.cat(own), torch.cat(after)] + [torch.cat([say(text)[0, 1:] for text in texts[kind]]) for kind in ("own_tag", "ordinary")]
        for k in (0, 1, 2, 4, 8, 16, 32, 64):
            span = torch.cat([bos[None], directions[:k]])
            share = lambda x: 1 - float((x @ span.T).pow(2).sum() / x.pow(2).sum())
            print(f"| {k} | {feature['name']} | " + " | ".join(f"{100 * share(x):.2f} %" for x in groups) + " |", flush=True)


def plot(folder, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    report = json.loads((folder / "frontier.json").read_text())
    fig, panels = plt.subplots(1, len(report["features"]), figsize=(9, 4.2), dpi=120, sharey=True, squeeze=False)
    for feature, ax in zip(report["features"], panels[0]):
        ways = [way for way in report["measured"] if way["feature"] == feature["name"]]
        base = plain(report, feature["name"])
        x, y = [way["loss"] / base["loss"] for way in ways], [way["always"]["leak"] for way in ways]
        there = [way["diffusers"]["loss"] / base["diffusers"]["loss"] for way in ways], [way["diffusers"]["leak"] for way in ways]
        ax.plot(x, y, "o-", color="#3b2a6b", markersize=5, linewidth=1.2, label="Strata")
        ax.plot(*there, "o", color="#c9a227", markersize=10, markerfacecolor="none", label="the same files in diffusers")
        for way, px, py in zip(ways, x, y):
            name = "plain" if way["silence"] is None else f"{way['silence']}"
            aside = {"0": (11, -3), "1": (-11, -3), "2": (0, -17)}.get(name, (0, 9))  # where points lie close
            ax.annotate(name, (px, py), xytext=aside, textcoords="offset points", ha="center", fontsize=8)
        ax.axvline(feature["base_loss"] / base["loss"], color="#777777", linewidth=0.8, linestyle=":", label="no LoRA at all")
        aim = base["always"]["leak"] / 20
        ax.fill_between([0, 1.15], 0, aim, color="#2a6b4c", alpha=0.2, linewidth=0, label="aim: leak / 20, loss + 15 %")
        ax.set(title=feature["name"], xlabel="loss with the tag / plain LoRA's", yscale="log", xlim=(0.95, None), ylim=(aim / 4, 10))
        ax.grid(alpha=0.25)
    panels[0][0].set_ylabel("leak, LoRA always on")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(0.92, 0.02))
    fig.tight_layout()
    fig.savefig(path)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "--plot":
        plot(Path(sys.argv[2]), sys.argv[3])
    elif len(sys.argv) == 2:
        sys.exit(measure(Path(sys.argv[1])))
    else:
        sys.exit(__doc__)
