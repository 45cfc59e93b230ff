//! `--lora FILE[:WEIGHT][,OPTION…]`: a LoRA, how strong it is, when, and where. One grammar for all commands.
//!
//! Read without a look at the disk: wrong usage is said at once. The options are what follows the file after commas; a file
//! may have commas and colons of its own if its name ends with `.safetensors`.

use std::path::{Path, PathBuf};

use super::picture::open_picture;
use anyhow::{Context, Result, bail, ensure};
use strata_model::progress::note;
use strata_model::{GateMode, LayerInfo, LoraWeights, Part, Region, counted, tags_of};

/// Every option, as it is typed up to its value.
const OPTIONS: [&str; 7] = ["gate=", "tag=", "class=", "region=", "lbw=", "after", "uncond"];
const GATES: [&str; 3] = ["always", "prompt", "token"];
/// How alike (Jaro) a word must be to be suggested.
const ALIKE: f64 = 0.7;

/// The argument, read; nothing was opened yet.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraArg {
    pub path: PathBuf,
    pub weight: f32,
    /// Tags to wait for in place of those that the file names.
    pub tags: Vec<String>,
    /// What the tags are a special case of.
    pub class: Option<String>,
    gate: Option<GateMode>,
    region: Option<Place>,
    uncond: bool,
    /// Its modules of the text encoder, where they have a weight of their own.
    text_weight: Option<f32>,
    /// LBW's weights of blocks.
    blocks: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Place {
    Box([f64; 4]),
    Mask(PathBuf),
}

/// A LoRA, and how it is used.
pub struct Lora {
    pub path: PathBuf,
    /// Its modules of the U-Net.
    pub file: LoraWeights,
    /// Its modules of the text encoder, where these are drawn with.
    pub text: Option<LoraWeights>,
    pub weight: f32,
    /// Those that were given, else those that the file names.
    pub tags: Vec<String>,
    pub class: Option<String>,
    /// The one that was asked for; else tags are waited for where there are any.
    pub gate: GateMode,
    pub region: Option<Region>,
    pub uncond: bool,
    text_weight: Option<f32>,
    blocks: Option<String>,
}

impl LoraArg {
    /// One that a prompt calls, with weights for the U-Net and for the text encoder.
    pub fn called(path: PathBuf, weight: f32, text: f32, blocks: Option<String>) -> Self {
        let text_weight = Some(text).filter(|text| *text != weight);
        Self { weight, text_weight, blocks, ..Self::new(path, weight) }
    }

    fn new(path: PathBuf, weight: f32) -> Self {
        let (tags, class, gate, region) = (Vec::new(), None, None, None);
        Self { path, weight, tags, class, gate, region, uncond: false, text_weight: None, blocks: None }
    }

    /// For commands that draw with it.
    pub fn to_draw(arg: &str) -> Result<Self> {
        let lora = Self::parse(arg)?;
        ensure!(lora.class.is_none(), "class= has no meaning here; `strata probe` asks for it");
        Ok(lora)
    }

    /// For commands that measure it.
    pub fn to_measure(arg: &str) -> Result<Self> {
        let lora = Self::parse(arg)?;
        let meaningless = [
            (lora.gate.is_some(), "gate=", "each way of gating is measured"),
            (lora.region.is_some(), "region=", "whole pictures are measured"),
            (lora.blocks.is_some(), "lbw=", "whole LoRAs are measured, and each of their blocks"),
            (lora.uncond, "uncond", "what is measured is one prompt's, without a negative one"),
        ];
        for (given, option, why) in meaningless {
            ensure!(!given, "{option} has no meaning here: {why}; leave it out");
        }
        ensure!(lora.weight != 0.0, "with the weight 0 a LoRA does nothing, and there is nothing to measure");
        Ok(lora)
    }

    fn parse(arg: &str) -> Result<Self> {
        let (base, options) = split_options(arg);
        let (path, weight) = split_weight(base)?;
        if let Some((_, option)) = path.rsplit_once(',').filter(|_| !path.ends_with(".safetensors")) {
            let options = "gate=always|prompt|token, tag=WORD, class=WORD, region=LEFT:TOP:RIGHT:BOTTOM, region=MASK, lbw=WEIGHTS, \
                           after and uncond";
            bail!("`{option}` is no option{}; options are {options}", meant(option, &OPTIONS));
        }
        ensure!(!path.is_empty(), "name a file");
        let mut lora = Self::new(path.into(), weight);
        let mut after = false;
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("gate", name) => {
                    ensure!(lora.gate.is_none(), "gate={name}: a LoRA has one gate; keep one gate=");
                    lora.gate = Some(gate_of(name)?);
                }
                ("tag", tag) => lora.tags.push(word("tag", tag)?),
                ("class", class) => {
                    ensure!(lora.class.is_none(), "class={class}: a LoRA has one class");
                    lora.class = Some(word("class", class)?);
                }
                ("region", place) => {
                    ensure!(lora.region.is_none(), "region={place}: a LoRA has one region; keep one region=");
                    lora.region = Some(Place::parse(place)?);
                }
                ("lbw", weights) => {
                    ensure!(lora.blocks.is_none(), "lbw={weights}: a LoRA has one lbw=");
                    lora.blocks = Some(word("lbw", weights)?);
                }
                ("after", _) => after = true,
                _ => lora.uncond = true,
            }
        }
        match &mut lora.gate {
            Some(GateMode::Token { after: at }) => *at = after,
            _ => ensure!(!after, "after needs gate=token"),
        }
        Ok(lora)
    }

    /// Reads the file, and the mask of a region. `text` says whether modules of the text encoder have a use.
    pub fn open(&self, allow_unused: bool, text: bool) -> Result<Lora> {
        let Self { path, weight, class, uncond, text_weight, blocks, .. } = self.clone();
        let mut file = LoraWeights::read(&path)?;
        let own = text.then(|| file.take(Part::TextEncoder));
        let others = file.take_others();
        if !others.is_empty() {
            let of = |(part, n): (&Part, &usize)| format!("{} of {part}", counted(*n, "module"));
            let list: Vec<String> = others.iter().map(of).collect();
            let what = format!("{}: has {}", path.display(), list.join(" and "));
            ensure!(
                allow_unused && !file.modules.is_empty(),
                "{what}, which have no use here; --allow-unused goes without them, where there are others"
            );
            let are = if others.values().sum::<usize>() == 1 { "is" } else { "are" };
            note(&format!("{what}, which {are} not used"));
        }
        let mut tags = self.tags.clone();
        if tags.is_empty() {
            tags = tags_of(&file.metadata).with_context(|| path.display().to_string())?;
        }
        let gate = self.gate.unwrap_or(if tags.is_empty() { GateMode::Always } else { GateMode::Prompt });
        ensure!(
            gate == GateMode::Always || !tags.is_empty(),
            "--lora {}: the file names no tags to wait for; add ,tag=WORD",
            path.display()
        );
        let region = self.region.as_ref().map(Place::open).transpose()?;
        ensure!(
            !file.modules.is_empty(),
            "{}: has modules of the text encoder alone; a LoRA is drawn with if it has some of the U-Net",
            path.display()
        );
        Ok(Lora { path, file, text: own, weight, tags, class, gate, region, uncond, text_weight, blocks })
    }
}

impl Lora {
    /// Takes of each block, and of the text encoder, what was asked for; `layers` are those of the model's U-Net.
    pub fn weigh(&mut self, layers: &[LayerInfo]) -> Result<()> {
        for file in [Some(&mut self.file), self.text.as_mut()].into_iter().flatten() {
            if let Some(blocks) = &self.blocks {
                file.scale_blocks(blocks, layers)?;
            }
        }
        if let (Some(own), Some(text)) = (self.text_weight, &mut self.text) {
            ensure!(
                self.weight != 0.0 || text.modules.is_empty(),
                "a weight for the text encoder needs one for the U-Net"
            );
            text.scale_at("text_encoder", own / self.weight, layers)?;
        }
        ensure!(
            !self.file.modules.is_empty(),
            "none of its modules is left to draw with: all their blocks have the weight 0"
        );
        Ok(())
    }
}

impl Place {
    /// Four shares, or else a file.
    fn parse(place: &str) -> Result<Self> {
        let sides: Vec<f64> = place.split(':').map_while(|side| side.parse().ok()).collect();
        match <[f64; 4]>::try_from(sides) {
            Ok(sides) if place.matches(':').count() == 3 => {
                Region::Box(sides).check()?;
                Ok(Self::Box(sides))
            }
            _ => Ok(Self::Mask(word("region", place)?.into())),
        }
    }

    fn open(&self) -> Result<Region> {
        match self {
            Self::Box(sides) => Ok(Region::Box(*sides)),
            Self::Mask(path) => mask(path).with_context(|| {
                format!("region={}: neither LEFT:TOP:RIGHT:BOTTOM nor a readable picture", path.display())
            }),
        }
    }
}

/// A picture of any format, told by its content. Its shape is in its alpha channel where that varies, else in how light it
/// is.
fn mask(path: &Path) -> Result<Region> {
    let picture = open_picture(path)?;
    let alpha: Vec<u8> = picture.to_rgba8().pixels().map(|pixel| pixel.0[3]).collect();
    let varies = alpha.iter().any(|value| *value != alpha[0]);
    let values = if varies { alpha } else { picture.to_luma8().into_raw() };
    Ok(Region::Mask {
        width: picture.width() as usize,
        height: picture.height() as usize,
        values: values.into_iter().map(|value| f32::from(value) / 255.0).collect(),
    })
}

/// The value of an option that must have one.
fn word(option: &str, value: &str) -> Result<String> {
    ensure!(!value.trim().is_empty(), "{option}= has no value; write {option}= and what it is");
    Ok(value.to_owned())
}

fn gate_of(name: &str) -> Result<GateMode> {
    Ok(match name {
        "always" => GateMode::Always,
        "prompt" => GateMode::Prompt,
        "token" => GateMode::Token { after: false },
        _ => bail!("gate={name} is no gate{}; choose always, prompt or token", meant(name, &GATES)),
    })
}

/// The most similar of `words`, as a question, if one is similar at all.
fn meant(word: &str, words: &[&str]) -> String {
    // what stands before a `=` is compared with what does there
    let key = word.split_inclusive('=').next().unwrap_or(word);
    let alike = words.iter().map(|known| (strsim::jaro(key, known), known));
    let best = alike.filter(|(alike, _)| *alike > ALIKE).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map_or(String::new(), |(_, known)| format!("; did you mean `{known}`?"))
}

/// What stands before the options, and the options.
fn split_options(arg: &str) -> (&str, Vec<&str>) {
    let known = |option: &str| {
        OPTIONS
            .iter()
            .any(|name| if name.ends_with('=') { option.starts_with(name) } else { option == *name })
    };
    let number = |option: &str| option.trim().parse::<f32>().is_ok();
    let (mut base, mut options) = (arg, Vec::new());
    // what an option ends with: weights of blocks may have commas between them
    let (mut before, mut end) = (arg, arg.len());
    while let Some((rest, option)) = before.rsplit_once(',') {
        before = rest;
        if number(option) {
            continue;
        }
        let whole = &arg[rest.len() + 1..end];
        if !known(option) || whole != option && !option.starts_with("lbw=") {
            break;
        }
        options.insert(0, whole);
        (base, end) = (rest, rest.len());
    }
    (base, options)
}

/// A path and the number after its last colon, if there is one.
pub fn split_weight(base: &str) -> Result<(&str, f32)> {
    let Some((path, weight)) = base.rsplit_once(':') else { return Ok((base, 1.0)) };
    match weight.parse::<f32>() {
        Ok(weight) if weight.is_finite() => Ok((path, weight)),
        // not written as infinite
        Ok(weight) if weight.is_infinite() && weight_digits(base) => {
            bail!("the weight of {path} is too large; write one of ordinary size, such as {path}:0.8")
        }
        Err(_) if !path.ends_with(".safetensors") || weight.contains(',') => Ok((base, 1.0)),
        _ => bail!("the weight `{weight}` is no number; write one such as {path}:0.8"),
    }
}

/// Whether what follows the last colon is written in digits.
fn weight_digits(base: &str) -> bool {
    base.rsplit(':').next().is_some_and(|weight| weight.contains(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arg: &str) -> (String, f32) {
        let lora = LoraArg::parse(arg).unwrap();
        (lora.path.to_str().unwrap().to_owned(), lora.weight)
    }

    fn refused(arg: &str) -> String {
        LoraArg::parse(arg).unwrap_err().to_string()
    }

    #[test]
    fn weights_after_a_colon() {
        assert_eq!(read("a.safetensors:0.8"), ("a.safetensors".into(), 0.8));
        assert_eq!(read("a.safetensors:-1,after,gate=token"), ("a.safetensors".into(), -1.0));
        assert_eq!(read(r"C:\a.safetensors"), (r"C:\a.safetensors".into(), 1.0));
        assert_eq!(read("a"), ("a".into(), 1.0));
        for weight in ["nan", "inf", "x", "0.8.", ""] {
            assert!(refused(&format!("a.safetensors:{weight}")).contains("is no number"), "{weight}");
        }
        for weight in ["1e39", "-1e39"] {
            assert!(refused(&format!("a.safetensors:{weight}")).contains("is too large"), "{weight}");
        }
    }

    #[test]
    fn options_after_commas() {
        assert_eq!(read("a,b.safetensors:0.8").0, "a,b.safetensors");
        let lora =
            LoraArg::parse("a:1,gate=token,after,tag=x y,tag=z,class=w,region=0:0:1:1,uncond").unwrap();
        assert_eq!(lora.gate, Some(GateMode::Token { after: true }));
        assert_eq!((lora.tags, lora.class), (vec!["x y".to_owned(), "z".to_owned()], Some("w".to_owned())));
        assert_eq!((lora.region, lora.uncond), (Some(Place::Box([0.0, 0.0, 1.0, 1.0])), true));
        let weighed = LoraArg::parse("a.safetensors:0.5,lbw=1,0, 0.5,-1,gate=token,after").unwrap();
        assert_eq!((weighed.weight, weighed.blocks), (0.5, Some("1,0, 0.5,-1".to_owned())));
        assert_eq!(LoraArg::parse("a,lbw=OUTALL").unwrap().blocks, Some("OUTALL".to_owned()));
        let mask = LoraArg::parse(r"a,region=C:\mask.png").unwrap();
        assert_eq!(mask.region, Some(Place::Mask(r"C:\mask.png".into())));
    }

    #[test]
    fn mistakes_are_named_with_what_was_meant() {
        for (arg, parts) in [
            ("a.safetensors,gaet=token,after", &["`gaet=token` is no option", "`gate=`"][..]),
            ("a.safetensors:0.8,Tag=x", &["`Tag=x`", "`tag=`"]),
            ("a,uncnd", &["`uncnd`", "`uncond`"]),
            ("a.safetensors:0,8", &["`8` is no option; options are"]),
            ("a,gate=tokne", &["gate=tokne", "`token`"]),
            ("a,gate=xyz", &["gate=xyz is no gate; choose always, prompt or token"]),
            ("a,after=1", &["`after=1`", "`after`"]),
            ("a,after", &["after needs gate=token"]),
            ("a,gate=prompt,after", &["after needs gate=token"]),
            ("a,tag= ", &["tag= has no value"]),
            ("a,region=", &["region= has no value"]),
            ("a,region=0:0:2:1", &["0:0:2:1", "left half"]),
            ("a,class=x,class=y", &["one class"]),
            ("a,lbw=INS,lbw=OUTS", &["lbw=OUTS", "one lbw="]),
            ("a.safetensors,gate=prompt,1", &["`1` is no option"]),
            ("a,gate=prompt,gate=always", &["gate=always", "one gate"]),
            ("a,region=0:0:1:1,region=m.png", &["region=m.png", "one region"]),
            ("", &["name a file"]),
        ] {
            let message = refused(arg);
            parts.iter().for_each(|part| assert!(message.contains(part), "{arg}: {part:?} not in {message}"));
        }
        assert!(LoraArg::to_draw("a,class=x").is_err() && LoraArg::to_measure("a,class=x,tag=y").is_ok());
        for option in ["gate=always", "region=0:0:1:1", "uncond", "lbw=INS"] {
            let message = LoraArg::to_measure(&format!("a,{option}")).unwrap_err().to_string();
            assert!(message.contains("has no meaning here"), "{message}");
        }
        let message = LoraArg::to_measure("a.safetensors:0").unwrap_err().to_string();
        assert!(message.contains("nothing to measure"), "{message}");
        assert!(LoraArg::to_draw("a.safetensors:0").is_ok());
    }

    #[test]
    fn masks_have_their_shape_in_alpha_or_light() {
        let folder = tempfile::tempdir().unwrap();
        let values = |picture: image::RgbaImage| {
            // a name that says another format
            let path = folder.path().join("mask.jpg");
            picture.save_with_format(&path, image::ImageFormat::Png).unwrap();
            match mask(&path).unwrap() {
                Region::Mask { width: 2, height: 1, values } => values,
                other => panic!("{other:?}"),
            }
        };
        let picture = |left: [u8; 4], right: [u8; 4]| {
            image::RgbaImage::from_fn(2, 1, |x, _| if x == 0 { left.into() } else { right.into() })
        };
        assert_eq!(values(picture([255, 255, 255, 255], [0, 0, 0, 255])), [1.0, 0.0]);
        assert_eq!(values(picture([255, 255, 255, 0], [0, 0, 0, 0])), [1.0, 0.0]);
        assert_eq!(values(picture([0, 0, 0, 0], [0, 0, 0, 255])), [0.0, 1.0]);
    }
}
