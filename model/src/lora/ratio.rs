//! How much of a LoRA is taken, block by block.

use super::weights::{LoraWeights, Part};
use crate::layers::LayerInfo;
use crate::selection::meant;
use crate::{Blocks, Error, Result};

/// What stands for the text encoder in a pattern.
const TEXT: &str = "text_encoder";

/// Sets of LBW's weights that have names, each with its 17 weights.
const PRESETS: [(&str, &str); 9] = [
    ("NONE", "00000000000000000"),
    ("ALL", "11111111111111111"),
    ("INS", "11110000000000000"),
    ("IND", "10001110000000000"),
    ("INALL", "11111110000000000"),
    ("MIDD", "10001111111100000"),
    ("OUTD", "10000000111100000"),
    ("OUTS", "10000000000011111"),
    ("OUTALL", "10000000111111111"),
];

/// Which layers of the U-Net a pattern means, 3×3 convolutions too, and whether it means the text encoder: `text_encoder` stands
/// for that among its terms.
///
/// # Errors
/// A term hits nothing.
pub(crate) fn meant_layers(pattern: &str, layers: &[LayerInfo]) -> Result<(Vec<bool>, bool)> {
    let (text, rest): (Vec<&str>, Vec<&str>) =
        pattern.split([',', '|']).partition(|term| term.trim() == TEXT);
    if rest.iter().any(|term| term.trim().is_empty()) {
        let message = "a term is missing; give a path, a group, a block, a level or `text_encoder`".into();
        return Err(Error::Pattern { pattern: pattern.into(), message });
    }
    let unet = if rest.is_empty() { vec![false; layers.len()] } else { meant(&rest.join(","), layers)? };
    Ok((unet, !text.is_empty()))
}

impl LoraWeights {
    /// Multiplies what it does at the layers that a pattern means: terms as in a [`Selection`](crate::Selection), but with 3×3
    /// convolutions wherever they are, and `text_encoder` for that. Modules that then do nothing are taken out. `layers` are all of
    /// the U-Net's.
    ///
    /// # Errors
    /// A term hits nothing, or a module is DoRA, of which there is no multiple.
    pub fn scale_at(&mut self, pattern: &str, ratio: f32, layers: &[LayerInfo]) -> Result<()> {
        let (unet, text) = meant_layers(pattern, layers)?;
        let own = |path: &str| layers.iter().zip(&unet).any(|(layer, hit)| *hit && layer.path == path);
        self.scale_by(|part, path| match part {
            Part::Unet if own(path) => ratio,
            Part::TextEncoder | Part::TextEncoder2 if text => ratio,
            _ => 1.0,
        })
    }

    /// Multiplies what it does block by block, as LoRA Block Weight (LBW) has it: `weights` is the name of a set, or a number for the
    /// text encoder (BASE) and one for each block, with `,` or `:` between them: of all blocks (26 in Stable Diffusion) or of those
    /// that have attention (17), where the others get 0. Layers in no block keep theirs.
    ///
    /// # Errors
    /// There is no such set, the numbers are not so many, or a module is DoRA, of which there is no multiple.
    pub fn scale_blocks(&mut self, weights: &str, layers: &[LayerInfo]) -> Result<()> {
        let blocks = Blocks::new(layers);
        let mut all: Vec<(usize, bool)> = Vec::new();
        for layer in layers {
            let Some(name) = blocks.name(&layer.path) else { continue };
            let attention = layer.path.contains("attentions") || layer.path.starts_with("mid_block");
            match all.iter_mut().find(|(block, _)| *block == name.kohya) {
                Some((_, any)) => *any |= attention,
                None => all.push((name.kohya, attention)),
            }
        }
        all.sort_unstable();
        let short = all.iter().filter(|(_, attention)| *attention).count();
        let refuse = |message: String| Err(Error::Pattern { pattern: format!("lbw={weights}"), message });
        let preset = PRESETS.iter().find(|(name, _)| *name == weights);
        let numbers: Option<Vec<f32>> = match preset {
            Some((_, digits)) => {
                Some(digits.bytes().map(|digit| if digit == b'1' { 1.0 } else { 0.0 }).collect())
            }
            None => weights.split([',', ':']).map(|number| number.trim().parse().ok()).collect(),
        };
        let Some(numbers) = numbers.filter(|numbers| numbers.iter().all(|number| number.is_finite())) else {
            let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
            return refuse(format!("neither numbers nor one of {}", names.join(", ")));
        };
        let with_all = numbers.len() == all.len() + 1;
        if !with_all && numbers.len() != short + 1 {
            return refuse(format!(
                "{} weights; this model takes {} (the text encoder, and each block that has attention) or {} (each block)",
                numbers.len(),
                short + 1,
                all.len() + 1
            ));
        }
        let named: Vec<usize> =
            all.iter().filter(|(_, attention)| with_all || *attention).map(|(block, _)| *block).collect();
        let of_block =
            |block: usize| named.iter().position(|own| *own == block).map_or(0.0, |i| numbers[i + 1]);
        self.scale_by(|part, path| match part {
            Part::Unet => blocks.name(path).map_or(1.0, |name| of_block(name.kohya)),
            Part::TextEncoder | Part::TextEncoder2 => numbers[0],
        })
    }

    /// Multiplies what each module does, and takes out those that then do nothing.
    fn scale_by(&mut self, ratio: impl Fn(Part, &str) -> f32) -> Result<()> {
        for ((part, path), module) in &mut self.modules {
            let ratio = ratio(*part, path);
            if module.magnitude.is_some() && ratio != 1.0 && ratio != 0.0 {
                return Err(Error::Lora(format!(
                    "{path} is DoRA, which has no multiples: weigh the whole LoRA, or take its blocks at 0 or 1"
                )));
            }
            module.alpha *= ratio;
        }
        self.modules.retain(|_, module| module.alpha != 0.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoraModule, UnetConfig, layers_of};

    /// A LoRA of rank 1 at every layer of Stable Diffusion 1.5 and one of its text encoder.
    fn everywhere(layers: &[LayerInfo]) -> LoraWeights {
        let module = |layer: &LayerInfo| LoraModule {
            down: vec![1.0; layer.inputs],
            down_shape: vec![1, layer.inputs],
            up: vec![1.0; layer.outputs],
            up_shape: vec![layer.outputs, 1],
            alpha: 2.0,
            magnitude: None,
        };
        let mut modules: std::collections::BTreeMap<_, _> =
            layers.iter().map(|layer| ((Part::Unet, layer.path.clone()), module(layer))).collect();
        modules.insert((Part::TextEncoder, "text_model.x".into()), module(&layers[0]));
        LoraWeights { modules, embeddings: [].into(), dtype: strata_engine::DType::F32, metadata: [].into() }
    }

    #[test]
    fn patterns_have_their_ratio() {
        let layers = layers_of(&UnetConfig::sd15()).unwrap();
        let mut lora = everywhere(&layers);
        lora.scale_at("up_blocks.1, text_encoder", 0.5, &layers).unwrap();
        for ((part, path), module) in &lora.modules {
            let hit = *part == Part::TextEncoder || path.starts_with("up_blocks.1.");
            assert_eq!(module.alpha, if hit { 1.0 } else { 2.0 }, "{path}");
        }
        lora.scale_at("text_encoder", 0.0, &layers).unwrap();
        assert_eq!(lora.modules.len(), layers.len());
        assert!(lora.scale_at("up_block", 0.5, &layers).unwrap_err().to_string().contains("nearest"));
        assert!(lora.scale_at("attn,", 0.5, &layers).is_err());
    }

    #[test]
    fn blocks_have_lbws_numbers() {
        let layers = layers_of(&UnetConfig::sd15()).unwrap();
        let blocks = Blocks::new(&layers);
        let alphas = |weights: &str| {
            let mut lora = everywhere(&layers);
            lora.scale_blocks(weights, &layers).map(|()| {
                let alpha = |(key, module): (&(Part, String), &LoraModule)| (key.1.clone(), module.alpha);
                lora.modules.iter().map(alpha).collect::<std::collections::BTreeMap<_, _>>()
            })
        };
        // a weight of each block that says which it is: 17 as they are listed, 26 by kohya's number + 1
        let listed =
            "BASE IN01 IN02 IN04 IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11";
        let short: Vec<String> = (1..=17).map(|i| i.to_string()).collect();
        let found = alphas(&short.join(",")).unwrap();
        for layer in &layers {
            let name = blocks.name(&layer.path).map(|name| name.lbw);
            let weight = match &name {
                None => Some(1.0),
                Some(name) => listed.split(' ').position(|own| own == name).map(|i| (i + 1) as f32),
            };
            assert_eq!(found.get(&layer.path).copied(), weight.map(|w| 2.0 * w), "{}", layer.path);
        }
        assert_eq!(found["text_model.x"], 2.0);
        let long: Vec<String> = (1..=26).map(|i| i.to_string()).collect();
        let found = alphas(&long.join(":")).unwrap();
        for layer in &layers {
            let weight = blocks.name(&layer.path).map_or(1.0, |name| (name.kohya + 2) as f32);
            assert_eq!(found[&layer.path], 2.0 * weight, "{}", layer.path);
        }
        // presets are as others have them
        let middle = alphas("MIDD").unwrap();
        assert_eq!(middle, alphas("1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0").unwrap());
        assert!(PRESETS.iter().all(|(name, _)| alphas(name).is_ok()));
        for (weights, words) in
            [("1,2", "2 weights; this model takes 17"), ("INSX", "INS"), ("1,x", "neither")]
        {
            let message = alphas(weights).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}
