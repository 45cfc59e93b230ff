//! `<lora:NAME:WEIGHT>` in a prompt: LoRAs of a folder, called by name as in A1111.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::remarks::CALLS;
use crate::commands::lora::LoraArg;

/// How many names are suggested in place of one that is not there.
const SHOWN: usize = 3;
/// How deep folders in folders are looked into.
const DEPTH: usize = 8;

/// The LoRAs that a prompt calls, and the prompt without the calls.
pub fn read(prompt: &str, folder: &Path) -> Result<(String, Vec<LoraArg>)> {
    let (mut text, mut rest, mut loras) = (String::new(), prompt, Vec::new());
    let mut known = None;
    while let Some(at) = rest.to_ascii_lowercase().find(CALLS[0]) {
        let Some(end) = rest[at..].find('>') else { break };
        let call = &rest[at..=at + end];
        if known.is_none() {
            known = Some(names(folder)?);
        }
        let inner = &call[CALLS[0].len()..call.len() - 1];
        loras.push(lora(inner, folder, known.iter().flatten().collect()).with_context(|| call.to_owned())?);
        text += &rest[..at];
        rest = &rest[at + end + 1..];
    }
    Ok((text + rest, loras))
}

/// `NAME:WEIGHT`, `NAME:TEXT:UNET`, and `te=`, `unet=` and `lbw=` after a colon.
fn lora(inner: &str, folder: &Path, known: BTreeMap<&String, &PathBuf>) -> Result<LoraArg> {
    let mut parts = inner.split(':');
    let name = parts.next().unwrap_or_default().trim();
    let (mut text, mut unet, mut blocks, mut place) = (None, None, None, 0);
    for part in parts {
        let number = |number: &str| match number.trim().parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            _ => bail!("`{number}` is no weight; write one such as <lora:{name}:0.8>"),
        };
        match part.split_once('=') {
            Some(("te", value)) => text = number(value)?,
            Some(("unet", value)) => unet = number(value)?,
            Some(("lbw", value)) => blocks = Some(value.trim().to_owned()),
            Some((other, _)) => bail!("`{other}=` means nothing here; te=, unet= and lbw= do"),
            None => {
                place += 1;
                match place {
                    1 => text = number(part)?,
                    2 => unet = number(part)?,
                    _ => bail!(
                        "`{part}`: a name is followed by at most two weights, for text encoder and U-Net"
                    ),
                }
            }
        }
    }
    // one weight is that of both
    let text = text.unwrap_or(1.0);
    let unet = unet.unwrap_or(text);
    let Some(path) = known.get(&name.to_owned()) else {
        let mut near: Vec<(f64, &&String)> = known
            .keys()
            .map(|known| (strsim::jaro_winkler(&name.to_lowercase(), &known.to_lowercase()), known))
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        let near: Vec<String> = near.iter().take(SHOWN).map(|(_, name)| format!("`{name}`")).collect();
        let has = match &near[..] {
            [] => "which has no LoRA at all".to_owned(),
            near => format!("nearest are {}", near.join(", ")),
        };
        bail!("there is no LoRA of this name in {}; {has}", folder.display());
    };
    Ok(LoraArg::called((*path).clone(), unet, text, blocks))
}

/// The LoRAs in a folder and those within it, by the names of their files without `.safetensors`, or of PEFT's folders.
fn names(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    fn walk(folder: &Path, depth: usize, all: &mut BTreeMap<String, PathBuf>) -> Result<()> {
        let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        for entry in entries.with_context(|| format!("--lora-dir {}", folder.display()))? {
            let path = entry.path();
            let peft = path.join("adapter_config.json").is_file();
            if path.is_dir() && !peft {
                if depth > 0 {
                    walk(&path, depth - 1, all)?;
                }
                continue;
            }
            let name = if peft { path.file_name() } else { path.file_stem() };
            let file = path.extension().is_some_and(|end| end == "safetensors");
            let name = name.and_then(|name| name.to_str()).filter(|_| peft || file);
            if let Some(name) = name
                && let Some(other) = all.insert(name.to_owned(), path.clone())
            {
                bail!(
                    "--lora-dir: {} and {} have one name; rename one of them",
                    other.display(),
                    path.display()
                );
            }
        }
        Ok(())
    }
    ensure!(folder.is_dir(), "--lora-dir {}: there is no such folder", folder.display());
    let mut all = BTreeMap::new();
    walk(folder, DEPTH, &mut all)?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_taken_out_of_prompts() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("styles/peft")).unwrap();
        for file in
            ["hair.safetensors", "styles/Ink v2.safetensors", "styles/peft/adapter_config.json", "a.txt"]
        {
            fs::write(at(file), "").unwrap();
        }
        let read = |prompt: &str| read(prompt, folder.path());
        let (text, loras) = read("a <lora:hair:0.8>, b <LORA:Ink v2><lora:peft:0.5:1:lbw=1,0,0> c").unwrap();
        assert_eq!(text, "a , b  c");
        let called = |name: &str, unet, text, blocks: Option<&str>| {
            LoraArg::called(at(name), unet, text, blocks.map(str::to_owned))
        };
        assert_eq!(
            loras,
            [
                called("hair.safetensors", 0.8, 0.8, None),
                called("styles/Ink v2.safetensors", 1.0, 1.0, None),
                called("styles/peft", 1.0, 0.5, Some("1,0,0")),
            ]
        );
        let (_, loras) = read("<lora:hair:1:te=0.2:unet=-1>").unwrap();
        assert_eq!(loras, [called("hair.safetensors", -1.0, 0.2, None)]);
        assert_eq!(read("a < lora, <lora:b").unwrap(), ("a < lora, <lora:b".into(), vec![]));
        for (prompt, words) in [
            ("<lora:heir:1>", &["<lora:heir:1>", "no LoRA of this name", "nearest are `hair`"][..]),
            ("<lora:hair:x>", &["`x` is no weight"]),
            ("<lora:hair:1e39>", &["`1e39` is no weight"]),
            ("<lora:hair:1:1:1>", &["at most two"]),
            ("<lora:hair:1:start=3>", &["`start=` means nothing"]),
        ] {
            let message = format!("{:#}", read(prompt).unwrap_err());
            words.iter().for_each(|word| assert!(message.contains(word), "{word} not in {message}"));
        }
        fs::write(at("styles/hair.safetensors"), "").unwrap();
        assert!(read("<lora:hair>").unwrap_err().root_cause().to_string().contains("one name"));
        assert!(super::read("<lora:a>", &at("none")).is_err());
    }
}
