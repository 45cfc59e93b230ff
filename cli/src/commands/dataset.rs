//! `strata dataset`

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use strata_model::{counted, write_atomic};
use strata_trainer::lint::{Subject, Text, lint};
use strata_trainer::{Config, Dataset as Pictures};

use super::{check_file, note};

/// Look after pictures and captions
#[derive(clap::Args)]
pub struct Dataset {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Check(Check),
}

/// Say what would keep a feature from being learned by its tag alone
///
/// A feature is what its pictures have in common and their captions do not say. So each caption carries its tag, none
/// says what the feature is or carries the tag of another, and all else varies. Exit code 1 where there are errors.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  strata dataset check run.toml
  strata dataset check run.toml --html report.html      with thumbnails
  strata dataset check run.toml --json --strict         for scripts; warnings count as errors")]
struct Check {
    /// The config of a run with features, a TOML file
    config: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Also write a page with every picture
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Exit code 1 also where there are only warnings
    #[arg(long)]
    strict: bool,
}

impl Dataset {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        match &self.command {
            Command::Check(check) => check.run(out),
        }
    }
}

impl Check {
    fn run(&self, out: &mut impl Write) -> Result<()> {
        let config = Config::load(&self.config)?;
        if config.feature.is_empty() {
            bail!(
                "{} has no [[feature]], so nothing says what its pictures have in common; see `strata train \
                 --print-config=features`",
                self.config.display()
            );
        }
        if let Some(html) = &self.html {
            check_file("--html", html)?;
        }
        let text = Text::open(&config.checkpoint()?)?;
        let datasets =
            config.feature.iter().map(|f| Pictures::open(&f.dataset)).collect::<Result<Vec<_>, _>>()?;
        datasets.iter().for_each(|dataset| note(&dataset.summary()));
        let pairs = config.feature.iter().zip(&datasets);
        let features: Vec<Subject<'_>> = pairs
            .map(|(feature, dataset)| Subject {
                name: &feature.name,
                tags: &feature.tags,
                describes: &feature.describes,
                pictures: dataset.pictures(),
                resolution: feature.dataset.resolution,
            })
            .collect();
        let report = lint(&features, &text)?;
        match self.json {
            true => writeln!(out, "{}", report.to_json())?,
            false => write!(out, "{}", report.to_text())?,
        }
        if let Some(path) = &self.html {
            write_atomic(path, |file| file.write_all(report.to_html().as_bytes()))?;
        }
        let (errors, warnings) = (report.errors().count(), report.warnings().count());
        if errors > 0 || (self.strict && warnings > 0) {
            out.flush()?;
            bail!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
        }
        Ok(())
    }
}
