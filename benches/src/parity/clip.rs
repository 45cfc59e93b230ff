//! Tokens and text states.

use anyhow::{Result, ensure};
use strata_engine::{Tape, Tensor};
use strata_model::{Cx, Gates, Taps};

use super::check::Checker;

/// `tokens.json`: the ids of every prompt, with and without BOS, EOS and padding.
pub(crate) fn tokens(c: &mut Checker) -> Result<()> {
    let tokenizer = c.checkpoint.tokenizer()?;
    let mut wrong = Vec::new();
    for prompt in &c.goldens.prompts {
        let (ids, bare) = (tokenizer.encode(&prompt.text)?, tokenizer.ids(&prompt.text)?);
        if ids != prompt.ids || bare != prompt.ids_no_special {
            wrong
                .push(format!("tokens: {:?} becomes {bare:?}, not {:?}", prompt.text, prompt.ids_no_special));
        }
    }
    c.summary("tokens", wrong.len() as f64, 0.0, "prompts whose ids differ");
    wrong.into_iter().for_each(|problem| c.problem(problem));
    Ok(())
}

/// `clip.*`: every hidden state, the last with its norm, what "clip skip" takes, and the pooled output.
pub(crate) fn text_encoder(c: &mut Checker) -> Result<()> {
    let text = c.checkpoint.text_encoder(c.gpu, c.dtype)?;
    let clip = text.clip();
    let [batch, tokens] = c.goldens.get("clip.input_ids")?.axes()?;
    ensure!(tokens > 0, "clip.input_ids has no tokens");
    let ids = c.goldens.indices("clip.input_ids")?;
    let rows: Vec<Vec<u32>> = ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect();
    let ids = Tensor::from_u32(c.gpu, &ids, &[batch, tokens])?;
    let tolerance = c.tolerances.forward;

    let (tape, taps) = (Tape::off(), Taps::new(|path| path.starts_with("hidden.")));
    let last = clip.forward(&Cx { tape: &tape, gates: Gates::none(), taps: Some(&taps) }, &ids, 0)?;
    for i in 0..=clip.config().num_hidden_layers {
        let Some(hidden) = taps.get(&format!("hidden.{i}")) else {
            c.problem(format!("clip.hidden.{i}: the text encoder shows no such state"));
            continue;
        };
        c.tensor(&format!("clip.hidden.{i}"), &hidden, tolerance)?;
    }
    c.tensor("clip.last_hidden", &last, tolerance)?;
    let pooled = clip.pooled(&last, &rows)?;
    c.tensor("clip.pooled", &pooled, tolerance)?;
    // A1111's "clip skip 2" leaves out one layer, which diffusers counts as 1
    for (name, skip) in [("clip.skip2", 1), ("clip.diffusers_clip_skip_2", 2)] {
        let cx = Cx { tape: &tape, gates: Gates::none(), taps: None };
        c.tensor(name, &clip.forward(&cx, &ids, skip)?, tolerance)?;
    }
    Ok(())
}
