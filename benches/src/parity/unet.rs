//! The U-Net without LoRA, forward and backward.

use anyhow::{Result, ensure};
use strata_engine::{DType, Tape, Tensor};
use strata_kernels::{mse, tape};
use strata_model::{Conditioning, Cx, Gates, Taps, UnetInput};

use super::check::Checker;
use super::vae::taken;

/// The modules whose outputs are in `unet.act.*`, but for the skip tensors and the parts of the transformer block.
const MODULES: [&str; 28] = [
    "time_proj",
    "time_embedding",
    "conv_in",
    "down_blocks.0",
    "down_blocks.1",
    "down_blocks.2",
    "down_blocks.3",
    "mid_block",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "mid_block.resnets.1",
    "up_blocks.0",
    "up_blocks.1",
    "up_blocks.2",
    "up_blocks.3",
    "conv_norm_out",
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.0.norm1",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.attentions.0",
    "down_blocks.0.attentions.0.norm",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0",
    "down_blocks.0.downsamplers.0",
    "up_blocks.0.resnets.0",
    "up_blocks.0.upsamplers.0",
    "up_blocks.1.attentions.0",
];
/// Parts of `down_blocks.0.attentions.0.transformer_blocks.0` that are there too.
const TRANSFORMER: [&str; 7] = ["norm1", "attn1", "norm2", "attn2", "norm3", "ff.net.0", "ff"];

/// The modules whose outputs have a gradient in `bwd.d.*`.
const BACKWARD: [&str; 12] = [
    "conv_in",
    "down_blocks.0",
    "down_blocks.1",
    "down_blocks.2",
    "down_blocks.3",
    "mid_block",
    "up_blocks.0",
    "up_blocks.1",
    "up_blocks.2",
    "up_blocks.3",
    "down_blocks.0.attentions.0",
    "down_blocks.0.resnets.0",
];

/// Keeps f16 gradients away from where f16 ends.
const LOSS_SCALE: f32 = 65_536.0;

/// `unet.*`: outputs at four timesteps, at two at once, at an odd size, with short and long texts; activations.
pub(crate) fn forward(c: &mut Checker) -> Result<()> {
    let unet = c.checkpoint.unet(c.gpu, c.dtype)?;
    let (tape, tolerance) = (Tape::off(), c.tolerances.forward);
    let cx = Cx::new(&tape);
    let (sample, conditioning) = (c.input("unet.sample")?, c.conditioning(c.goldens.get("unet.context")?)?);
    let [batch, ..] = c.goldens.get("unet.sample")?.axes::<4>()?;
    for t in [1, 250, 500, 999] {
        let timesteps = vec![t as f32; batch];
        let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
        let out = unet.forward(&cx, &input)?;
        c.tensor(&format!("unet.t{t}.out"), &out, tolerance)?;
    }

    let paths = activations(unet.config().layers_per_block);
    let wanted = paths.clone();
    let taps = Taps::new(move |path| wanted.iter().any(|w| w == path));
    let timesteps = c.goldens.get("unet.mixed.timesteps")?.values.clone();
    let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
    let out = unet.forward(&Cx { taps: Some(&taps), ..cx }, &input)?;
    c.tensor("unet.mixed.out", &out, tolerance)?;
    taken(c, "unet.act.", &taps, &paths)?;

    let golden = c.goldens.get("unet.context")?;
    let [texts, tokens, channels] = golden.axes()?;
    ensure!(texts > 0 && tokens >= 7 && channels > 0, "unet.context is only {:?}", golden.shape);
    let texts: Vec<&[f32]> = golden.values.chunks_exact(tokens * channels).collect();
    let upload = |parts: Vec<&[f32]>, length: usize| {
        let count = parts.iter().map(|part| part.len()).sum::<usize>() / (length * channels);
        Conditioning::upload(c.gpu, &parts.concat(), &[count, length, channels], c.dtype)
    };
    let first = upload(vec![texts[0]], tokens)?;
    let short = upload(texts.iter().map(|text| &text[..7 * channels]).collect(), 7)?;
    let mirrored = texts.iter().zip(texts.iter().rev()).flat_map(|(text, other)| [*text, *other]);
    let long = upload(mirrored.collect(), 2 * tokens)?;
    let odd = c.input("unet.odd.sample")?;
    for (name, sample, conditioning) in
        [("odd", &odd, &first), ("short", &sample, &short), ("long", &sample, &long)]
    {
        let timesteps = vec![321.0; conditioning.states.shape()[0]];
        let out = unet.forward(&cx, &UnetInput { sample, timesteps: &timesteps, conditioning })?;
        c.tensor(&format!("unet.{name}.out"), &out, tolerance)?;
    }
    Ok(())
}

/// The paths in `unet.act.*`.
fn activations(layers_per_block: usize) -> Vec<String> {
    let mut paths: Vec<String> = MODULES.iter().map(|text| text.to_string()).collect();
    let block = "down_blocks.0.attentions.0.transformer_blocks.0";
    paths.extend(TRANSFORMER.iter().map(|part| format!("{block}.{part}")));
    for i in 0..4 {
        // one for each resnet, and one for the downsampler, which the last block does not have
        let skips = layers_per_block + usize::from(i < 3);
        paths.extend((0..skips).map(|j| format!("down_blocks.{i}.res.{j}")));
    }
    paths
}

/// `bwd.*`: the loss of the first training batch, and its gradient in the input, the text and every block.
pub(crate) fn backward(c: &mut Checker) -> Result<()> {
    let unet = c.checkpoint.unet(c.gpu, c.dtype)?;
    let first = |name: &str| c.goldens.get(name)?.part(0);
    let (noisy, conditioning) =
        (c.upload(&first("train.noisy")?)?, c.conditioning(&first("train.context")?)?);
    let (target, timesteps) = (first("train.target")?, first("train.timesteps")?.values);
    let (target, shape) = target.nhwc()?;
    let target = Tensor::from_f32(c.gpu, &target, &shape, DType::F32)?;
    let scale = if c.dtype == DType::F16 { LOSS_SCALE } else { 1.0 };
    let ones = Tensor::from_f32(c.gpu, &vec![1.0; timesteps.len()], &[timesteps.len()], DType::F32)?;

    let taps = Taps::new(|path| BACKWARD.contains(&path)).retain_gradients(true);
    let tape = tape();
    tape.track(&noisy);
    tape.track(&conditioning.states);
    let cx = Cx { tape: &tape, gates: Gates::none(), taps: Some(&taps) };
    let input = UnetInput { sample: &noisy, timesteps: &timesteps, conditioning: &conditioning };
    let out = unet.forward(&cx, &input)?;
    let loss = mse(&tape, &out, &target, &ones)?;
    ensure!(!tape.is_empty(), "the tape recorded nothing");
    let grads = tape.backward(&loss, Tensor::from_f32(c.gpu, &[scale], &[1], DType::F32)?)?;

    c.tensor("bwd.loss", &loss, c.tolerances.loss)?;
    let tapped = taps.take();
    let blocks = BACKWARD.iter().map(|path| (format!("bwd.d.{path}"), tapped.get(*path)));
    let inputs =
        [("bwd.d_noisy".to_owned(), Some(&noisy)), ("bwd.d_context".to_owned(), Some(&conditioning.states))];
    for (name, tensor) in inputs.into_iter().chain(blocks) {
        match tensor.and_then(|tensor| grads.get(tensor)) {
            Some(grad) => c.scaled_tensor(&name, grad, 1.0 / scale, c.tolerances.gradient)?,
            None => c.problem(format!("{name}: no gradient came back")),
        }
    }
    Ok(())
}
