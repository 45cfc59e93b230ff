//! `--lora FILE[:WEIGHT] --tag TAG… [--class WORD]`, once or more.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};
use strata_model::{LoraWeights, tags_of};

use crate::commands::generate::lora::split_weight;

/// The LoRAs as they were given.
pub struct Loras(Vec<Given>);

/// A LoRA, and what came after it.
struct Given {
    lora: String,
    tags: Vec<String>,
    class: Option<String>,
}

/// A LoRA, read.
pub struct Lora {
    /// Another one for each.
    pub name: String,
    pub path: PathBuf,
    pub file: LoraWeights,
    pub weight: f32,
    pub tags: Vec<String>,
    pub class: Option<String>,
}

impl Loras {
    /// Reads the files.
    pub fn read(&self) -> Result<Vec<Lora>> {
        let mut loras = self.0.iter().map(Given::read).collect::<Result<Vec<_>>>()?;
        name_all(&mut loras);
        Ok(loras)
    }
}

impl Given {
    fn read(&self) -> Result<Lora> {
        let given = &self.lora;
        let (path, weight) = if Path::new(given).exists() { (&given[..], 1.0) } else { split_weight(given) };
        ensure!(weight.is_finite(), "--lora {given}: the weight must be a number, such as 0.8");
        let file = LoraWeights::read(Path::new(path))?;
        let mut tags = self.tags.clone();
        if tags.is_empty() {
            tags = tags_of(&file.metadata).with_context(|| path.to_owned())?;
        }
        ensure!(!tags.is_empty(), "--lora {given}: the file names no tags; add --tag WORD after it");
        let class = self.class.clone();
        Ok(Lora { name: String::new(), path: path.into(), file, weight, tags, class })
    }
}

/// Names that differ: a number is put behind those that came before.
fn name_all(loras: &mut [Lora]) {
    let mut taken = BTreeSet::new();
    for lora in loras {
        let stem = lora.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut number = 1;
        lora.name = stem.clone();
        while !taken.insert(lora.name.clone()) {
            number += 1;
            lora.name = format!("{stem}-{number}");
        }
    }
}

/// Value by value in the order of the command line, which derived arguments do not keep.
impl FromArgMatches for Loras {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given: Vec<(usize, &str, &String)> = Vec::new();
        for id in ["lora", "tag", "class"] {
            let places = matches.indices_of(id).into_iter().flatten();
            let values = matches.get_many::<String>(id).into_iter().flatten();
            given.extend(places.zip(values).map(|(place, value)| (place, id, value)));
        }
        given.sort_by_key(|(place, ..)| *place);
        let mut loras: Vec<Given> = Vec::new();
        for (_, id, value) in given {
            let refuse = |message: &str| {
                let message = format!("--{id} {value}: {message}\n\nFor more information, try '--help'.\n");
                Err(Error::raw(ErrorKind::ArgumentConflict, message))
            };
            match (id, loras.last_mut()) {
                ("lora", _) => loras.push(Given { lora: value.clone(), tags: Vec::new(), class: None }),
                (_, None) => return refuse("must come after the --lora that it belongs to"),
                ("tag", Some(lora)) => lora.tags.push(value.clone()),
                (_, Some(lora)) if lora.class.is_some() => return refuse("a LoRA has one --class"),
                (_, Some(lora)) => lora.class = Some(value.clone()),
            }
        }
        Ok(Self(loras))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for Loras {
    fn augment_args(command: Command) -> Command {
        let arg = |name: &'static str, value: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name(value).help(help).action(ArgAction::Append)
        };
        command
            .arg(
                arg("lora", "FILE[:WEIGHT]", "A LoRA and how strong it is; may be given several times")
                    .required(true),
            )
            .arg(arg(
                "tag",
                "TAG",
                "A word that the LoRA before it should answer to; may be given several times",
            ))
            .arg(arg(
                "class",
                "WORD",
                "What the tag of the LoRA before it is a special case of, such as hair",
            ))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
