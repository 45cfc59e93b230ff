//! The U-Net with LoRA: outputs, and training with the steps that `strata train` takes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use strata_engine::{Tape, Tensor};
use strata_model::{Conditioning, Cx, Gates, LoraEntry, LoraSet, LoraWeights, Part, Unet, UnetInput};
use strata_trainer::{Batch, Learner, TrainConfig};

use super::check::{Checker, relative_l2};
use super::goldens::to_nchw;

/// A LoRA of the goldens.
struct Case {
    name: &'static str,
    /// Whether there are outputs of it.
    forward: bool,
    /// Whether there are AdamW's running means of it.
    moments: bool,
}

const CASES: [Case; 4] = [
    Case { name: "attn_all", forward: true, moments: false },
    Case { name: "attn_sel", forward: true, moments: true },
    Case { name: "attn_sel_zero", forward: false, moments: false },
    Case { name: "locon_sel", forward: true, moments: false },
];

/// `lora.NAME.*` and `train.NAME.*` of the LoRAs that Strata can have, and the training batches themselves. Each LoRA is in
/// kohya's spelling, and in others where the folder has files of it.
pub(crate) fn loras(c: &mut Checker) -> Result<()> {
    batches(c)?;
    let mut unet = c.checkpoint.unet(c.gpu, c.dtype)?;
    for case in CASES {
        let path = c.folder.join("lora").join(format!("{}_kohya.safetensors", case.name));
        let file = LoraWeights::read(&path)?;
        let lora = LoraSet::from_weights(c.gpu, c.dtype, &file, &unet)?;
        ensure!(
            lora.entries().len() == file.modules.len(),
            "{}: {} of {} modules found a layer",
            path.display(),
            lora.entries().len(),
            file.modules.len()
        );
        unet.attach(&lora)?;
        let outcome = match case.forward {
            true => outputs(c, &unet, case.name),
            false => Ok(()),
        };
        let outcome = outcome.and_then(|()| training(c, &unet, &lora, &case));
        unet.detach_all();
        outcome.with_context(|| case.name)?;
        if case.forward {
            for path in spellings(c, case.name)? {
                spelled(c, &mut unet, case.name, &path).with_context(|| path.display().to_string())?;
            }
        }
    }
    dora(c, &mut unet)?;
    with_text(c, &mut unet)
}

/// The files of a LoRA in other spellings than kohya's.
fn spellings(c: &Checker, name: &str) -> Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(c.folder.join("lora"))?;
    let mut paths = files.map(|file| Ok(file?.path())).collect::<Result<Vec<_>>>()?;
    let other = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        // `attn_sel_zero_peft` is another LoRA than `attn_sel`
        stem.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with("_peft") || rest.starts_with("_diffusers"))
    };
    paths.retain(other);
    paths.sort();
    Ok(paths)
}

/// `lora.NAME.out` of a file in another spelling.
fn spelled(c: &mut Checker, unet: &mut Unet, name: &str, path: &Path) -> Result<()> {
    let inputs = ["unet.sample", "unet.mixed.timesteps", "unet.context"];
    let got = predicted(c, unet, path, inputs)?;
    let golden = &c.goldens.get(&format!("lora.{name}.out"))?.values;
    ensure!(got.len() == golden.len(), "{} values for {}", got.len(), golden.len());
    let file = path.file_stem().unwrap_or_default().to_string_lossy();
    c.summary(&format!("lora/{file}"), relative_l2(&got, golden), c.tolerances.forward, "");
    Ok(())
}

/// `lora.dora_sel.out`, where the folder has it, in both spellings.
fn dora(c: &mut Checker, unet: &mut Unet) -> Result<()> {
    if c.goldens.get("lora.dora_sel.out").is_err() {
        return Ok(());
    }
    for spelling in ["kohya", "peft"] {
        let path = c.folder.join("lora").join(format!("dora_sel_{spelling}.safetensors"));
        let inputs = ["sample", "timesteps", "context"].map(|name| format!("lora.dora_sel.{name}"));
        let got = predicted(c, unet, &path, inputs.each_ref().map(String::as_str))?;
        c.close("lora.dora_sel.out", &got, c.tolerances.forward);
    }
    Ok(())
}

/// `lora.kohya_full.*`: modules of the text encoder too, whose states the U-Net then is told. In every spelling.
fn with_text(c: &mut Checker, unet: &mut Unet) -> Result<()> {
    const NAME: &str = "kohya_full";
    let kohya = c.folder.join("lora").join(format!("{NAME}_kohya.safetensors"));
    for path in std::iter::once(kohya).chain(spellings(c, NAME)?) {
        let mut file = LoraWeights::read(&path)?;
        let mut text = c.checkpoint.text_encoder(c.gpu, c.dtype)?;
        ensure!(text.attach(&file.take(Part::TextEncoder), 0)?, "{}: nothing for text", path.display());
        let (tape, gates) = (Tape::off(), Gates::scalars(&[1.0]));
        let cx = Cx { tape: &tape, gates: &gates, taps: None };
        let [texts, tokens] = c.goldens.get("clip.input_ids")?.axes()?;
        let ids = Tensor::from_u32(c.gpu, &c.goldens.indices("clip.input_ids")?, &[texts, tokens])?;
        let states = text.clip().forward(&cx, &ids, 0)?;
        c.tensor(&format!("lora.{NAME}.clip_last_hidden"), &states, c.tolerances.forward)?;

        let set = LoraSet::from_weights(c.gpu, c.dtype, &file, unet)?;
        let timesteps = c.goldens.get("unet.mixed.timesteps")?.values.clone();
        let channels = states.last();
        let told = &states.to_f32()?[..timesteps.len() * tokens * channels];
        let conditioning = Conditioning::upload(c.gpu, told, &[timesteps.len(), tokens, channels], c.dtype)?;
        let sample = c.input("unet.sample")?;
        unet.attach(&set)?;
        let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
        let out = unet.forward(&cx, &input);
        unet.detach_all();
        c.tensor(&format!("lora.{NAME}.out"), &out?, c.tolerances.forward)?;
    }
    Ok(())
}

/// What the U-Net says with a LoRA file to the goldens of these names: latents, timesteps and text states. N C H W.
fn predicted(c: &Checker, unet: &mut Unet, path: &Path, inputs: [&str; 3]) -> Result<Vec<f32>> {
    let lora = LoraSet::from_weights(c.gpu, c.dtype, &LoraWeights::read(path)?, unet)?;
    let [sample, timesteps, context] = inputs;
    let (sample, timesteps) = (c.input(sample)?, c.goldens.get(timesteps)?.values.clone());
    let conditioning = c.conditioning(c.goldens.get(context)?)?;
    unet.attach(&lora)?;
    let (tape, gates) = (Tape::off(), Gates::scalars(&[1.0]));
    let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
    let out = unet.forward(&Cx { tape: &tape, gates: &gates, taps: None }, &input);
    unet.detach_all();
    let out = out?;
    let &[n, h, w, channels] = out.shape() else { anyhow::bail!("an output of shape {:?}", out.shape()) };
    Ok(to_nchw(&out.to_f32()?, [n, h, w, channels]))
}

/// `lora.NAME.out`, and the same with the LoRA at 0.6.
fn outputs(c: &mut Checker, unet: &Unet, name: &str) -> Result<()> {
    let (sample, conditioning) = (c.input("unet.sample")?, c.conditioning(c.goldens.get("unet.context")?)?);
    let timesteps = c.goldens.get("unet.mixed.timesteps")?.values.clone();
    for (suffix, gate) in [("out", 1.0), ("out_scale0.6", 0.6)] {
        let (tape, gates) = (Tape::off(), Gates::scalars(&[gate]));
        let input = UnetInput { sample: &sample, timesteps: &timesteps, conditioning: &conditioning };
        let out = unet.forward(&Cx { tape: &tape, gates: &gates, taps: None }, &input)?;
        c.tensor(&format!("lora.{name}.{suffix}"), &out, c.tolerances.forward)?;
    }
    Ok(())
}

/// `train.NAME.*`: five AdamW steps over five fixed batches.
fn training(c: &mut Checker, unet: &Unet, lora: &LoraSet, case: &Case) -> Result<()> {
    let prefix = format!("train.{}", case.name);
    let before = lora.params().to_f32()?;
    let train = TrainConfig { lr: 1e-3, max_grad_norm: 0.0, ..TrainConfig::default() };
    let mut learner = Learner::new(lora, 0, c.dtype, &train)?;
    let [steps, ..] = c.goldens.get("train.noisy")?.axes::<5>()?;
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let batch = batch(c, step)?;
        let mut first_grads = None;
        // in f16 a step is repeated with a smaller loss scale until it succeeds
        let (loss, norm) = loop {
            let scale = learner.loss_scale().value();
            let loss = learner.backward(unet, &batch)?.total.to_f32()?[0];
            if step == 0 {
                let grads = learner.grads().to_f32()?;
                first_grads = Some(grads.iter().map(|grad| grad / scale).collect::<Vec<f32>>());
            }
            let update = learner.update(1.0)?;
            ensure!(!update.hopeless, "{prefix}: gradients of step {step} are not finite");
            if !update.skipped {
                break (loss, update.grad_norm);
            }
        };
        losses.push(loss);
        norms.push(norm);
        if let Some(grads) = first_grads {
            gradients(c, lora, &format!("{prefix}.grad"), &grads);
        }
    }
    c.close(&format!("{prefix}.losses"), &losses, c.tolerances.loss);
    c.close(&format!("{prefix}.grad_norms"), &norms, c.tolerances.gradient);
    updates(c, lora, &format!("{prefix}.after{steps}"), &before)?;
    if case.moments {
        for ((name, moment), tolerance) in
            learner.state().into_iter().zip([c.tolerances.mean, c.tolerances.square])
        {
            each(c, lora, &format!("{prefix}.{name}"), &moment.to_f32()?, tolerance);
        }
    }
    Ok(())
}

/// `train.noisy`, `train.target` and `train.context`: what a step makes of latents, noise and captions.
fn batches(c: &mut Checker) -> Result<()> {
    let schedule = c.checkpoint.schedule()?;
    let (latents, noise) = (c.goldens.get("train.latents")?, c.goldens.get("train.noise")?);
    let timesteps = c.goldens.indices("train.timesteps")?;
    let size = (latents.values.len() / timesteps.len().max(1)).max(1);
    let (mut noisy, mut target) = (Vec::new(), Vec::new());
    let samples = latents.values.chunks_exact(size).zip(noise.values.chunks_exact(size));
    for ((latent, noise), t) in samples.zip(timesteps) {
        noisy.extend(schedule.add_noise(t as usize)?.apply(latent, noise)?);
        target.extend(schedule.training_target(t as usize)?.apply(latent, noise)?);
    }
    c.close("train.noisy", &noisy, c.tolerances.host);
    c.close("train.target", &target, c.tolerances.host);

    let text = c.checkpoint.text_encoder(c.gpu, c.dtype)?;
    let [steps, batch, tokens] = c.goldens.get("train.input_ids")?.axes()?;
    let ids = c.goldens.indices("train.input_ids")?;
    let ids = Tensor::from_u32(c.gpu, &ids, &[steps * batch, tokens])?;
    let hidden = text.clip().forward(&Cx::new(&Tape::off()), &ids, 0)?.to_f32()?;
    c.close("train.context", &hidden, c.tolerances.forward);
    Ok(())
}

/// Training batch `step` of the goldens.
fn batch(c: &Checker, step: usize) -> Result<Batch> {
    let part = |name: &str| c.goldens.get(name)?.part(step);
    let (noisy, latent_shape) = part("train.noisy")?.nhwc()?;
    let (target, _) = part("train.target")?.nhwc()?;
    let (timesteps, context) = (part("train.timesteps")?.values, part("train.context")?);
    let weights = vec![1.0; timesteps.len()];
    let context_shape = context.axes()?;
    let context = context.values;
    Ok(Batch { latent_shape, noisy, target, timesteps, context_shape, context, weights, ..Batch::default() })
}

/// Compares a flat buffer with one golden per matrix.
fn each(c: &mut Checker, lora: &LoraSet, prefix: &str, flat: &[f32], tolerance: f64) {
    for entry in lora.entries() {
        for (name, values) in matrices(prefix, entry, flat) {
            c.close(&name, &values, tolerance);
        }
    }
}

/// Compares the first step's gradients, matrix by matrix and all together.
fn gradients(c: &mut Checker, lora: &LoraSet, prefix: &str, grads: &[f32]) {
    each(c, lora, prefix, grads, c.tolerances.matrix);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (name, values) in lora.entries().iter().flat_map(|entry| matrices(prefix, entry, grads)) {
        // one that is absent, or of another size, has been noticed already
        if let Ok(golden) = c.goldens.get(&name) {
            ours.extend(values);
            theirs.extend(&golden.values);
        }
    }
    let error = relative_l2(&ours, &theirs);
    c.summary(&format!("{prefix} (all)"), error, c.tolerances.gradient, "all matrices together");
}

/// The goldens of `down` and `up` of a layer, and the part of a flat buffer that each is compared with.
fn matrices(prefix: &str, entry: &LoraEntry, flat: &[f32]) -> [(String, Vec<f32>); 2] {
    let name = |half: &str| format!("{prefix}.unet.{}.lora_{half}.weight", entry.path);
    let (down, up) = (&flat[entry.down.clone()], &flat[entry.up.clone()]);
    [(name("A"), entry.down_to_file(down)), (name("B"), up.to_vec())]
}

/// Compares what the steps changed with what PyTorch's changed: every matrix, and all of them together.
fn updates(c: &mut Checker, lora: &LoraSet, prefix: &str, before: &[f32]) -> Result<()> {
    let after = lora.params().to_f32()?;
    let change = |new: &[f32], old: &[f32]| new.iter().zip(old).map(|(n, o)| n - o).collect::<Vec<f32>>();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for entry in lora.entries() {
        let pairs = matrices(prefix, entry, &after).into_iter().zip(matrices(prefix, entry, before));
        for ((name, new), (_, old)) in pairs {
            let mine = change(&new, &old);
            let (ours, theirs) = (&mut ours, &mut theirs);
            c.measured(&name, c.tolerances.worst_update, "of the change", move |golden| {
                ensure!(golden.values.len() == old.len(), "{:?} for {} values", golden.shape, old.len());
                let torch = change(&golden.values, &old);
                let error = relative_l2(&mine, &torch);
                ours.extend(mine);
                theirs.extend(torch);
                Ok(error)
            });
        }
    }
    let all = relative_l2(&ours, &theirs);
    c.summary(&format!("{prefix} (all)"), all, c.tolerances.update, "of the change, all matrices together");
    Ok(())
}
