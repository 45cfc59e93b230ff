//! `--lora FILE[:WEIGHT][,OPTION…] --tag TAG… [--class WORD]`, once or more.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};

use crate::commands::lora::{Lora, LoraArg};

/// The LoRAs as they were given, each with the tags and the class that came after it.
pub struct Loras(Vec<LoraArg>);

impl Loras {
    /// Reads the files, and gives each LoRA a name of its own.
    pub fn open(&self, allow_unused: bool) -> Result<Vec<(String, Lora)>> {
        let loras = self.0.iter().map(|given| open(given, allow_unused)).collect::<Result<Vec<_>>>()?;
        let names = names(loras.iter().map(|lora| lora.path.as_path()));
        Ok(names.into_iter().zip(loras).collect())
    }
}

fn open(given: &LoraArg, allow_unused: bool) -> Result<Lora> {
    let lora = given.open(allow_unused, false)?;
    let path = lora.path.display();
    ensure!(!lora.tags.is_empty(), "--lora {path}: the file names no tags; add --tag WORD after it");
    Ok(lora)
}

/// Names that differ: a number is put behind those that came before.
fn names<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let name = |path: &Path| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let (mut name, mut number) = (stem.clone(), 1);
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{stem}-{number}");
        }
        name
    };
    paths.map(name).collect()
}

/// A value of one of the arguments.
enum Given<'a> {
    Lora(&'a LoraArg),
    Tag(&'a String),
    Class(&'a String),
}

/// Value by value in the order of the command line, which derived arguments do not keep.
impl FromArgMatches for Loras {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given: Vec<(usize, Given)> = Vec::new();
        let places = |id: &str| matches.indices_of(id).into_iter().flatten();
        let files = matches.get_many("lora").into_iter().flatten().map(Given::Lora);
        given.extend(places("lora").zip(files));
        for (id, kind) in [("tag", Given::Tag as fn(_) -> _), ("class", Given::Class)] {
            given.extend(places(id).zip(matches.get_many(id).into_iter().flatten().map(kind)));
        }
        given.sort_by_key(|(place, _)| *place);
        let mut loras: Vec<LoraArg> = Vec::new();
        for (_, value) in given {
            let refuse = |id: &str, value: &str, message: &str| {
                let message = format!("--{id} {value}: {message}\n\nFor more information, try '--help'.\n");
                Err(Error::raw(ErrorKind::ArgumentConflict, message))
            };
            let last = "must come after the --lora that it belongs to";
            match (value, loras.last_mut()) {
                (Given::Lora(lora), _) => loras.push(lora.clone()),
                (Given::Tag(tag), None) => return refuse("tag", tag, last),
                (Given::Class(class), None) => return refuse("class", class, last),
                (Given::Tag(tag), Some(lora)) => lora.tags.push(tag.clone()),
                (Given::Class(class), Some(lora)) if lora.class.is_some() => {
                    return refuse("class", class, "a LoRA has one class");
                }
                (Given::Class(class), Some(lora)) => lora.class = Some(class.clone()),
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
                arg(
                    "lora",
                    "FILE[:WEIGHT][,OPTION...]",
                    "A LoRA and how strong it is; may be given several times",
                )
                .required(true)
                .value_parser(LoraArg::to_measure),
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
