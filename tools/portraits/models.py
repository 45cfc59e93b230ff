"""The networks: Stable Diffusion 1.x's topology, very small, and the classifier that judges the pictures."""
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from captions import QUESTIONS

WIDTH = 96  # channels of the text encoder


def vae():
    """64×64×3 → 16×16×4. Begins as a network whose residual branches are silent and whose other convolutions pass
    channels on, with little noise on the latents: colours get through from the first step, which saves most of the training."""
    net = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=64, norm_num_groups=4, layers_per_block=1,
        block_out_channels=(16, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    with torch.no_grad():
        for name, module in net.named_modules():
            if name.endswith(("conv2", "to_out.0")):
                module.weight.zero_()
            elif name.endswith(("conv_in", "conv_shortcut", "samplers.0.conv")):
                module.weight.mul_(0.5)
                module.weight[range(m := min(module.weight.shape[:2])), range(m), module.weight.shape[2] // 2, module.weight.shape[3] // 2] += 1
        net.quant_conv.bias[4:] -= 6
    return net


def text_encoder(vocab):
    """CLIP's text half: three layers, 77 positions."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=77, hidden_act="quick_gelu", projection_dim=WIDTH, bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1, pad_token_id=len(vocab) - 1))


def unet():
    """Stable Diffusion 1.5's blocks. `attention_head_dim` is the number of heads, as there."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(32, 48, 64, 96),
        norm_num_groups=16, cross_attention_dim=WIDTH, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)


SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "trained_betas": None, "steps_offset": 1,
    "set_alpha_to_one": False, "clip_sample": False, "skip_prk_steps": True}


class TextHeads(nn.Module):
    """What a caption says, read from one text state: the text encoder's pretraining."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, len(values) + 1) for name, values in QUESTIONS.items()})

    def forward(self, states):
        return {name: head(states) for name, head in self.heads.items()}


class Classifier(nn.Module):
    """Attributes of a picture in −1 to 1."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 32, 48, 64)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in widths[1:])
        self.mix = nn.Linear(64 * 16, 128)
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(values)) for name, values in QUESTIONS.items()})

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        x = F.silu(self.mix(x.flatten(1)))
        return {name: head(x) for name, head in self.heads.items()}
