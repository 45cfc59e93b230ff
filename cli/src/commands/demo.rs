//! `strata demo`

mod files;
mod pictures;
mod report;
mod rest;
mod unseen;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use strata_engine::Gpu;
use strata_model::check_folder;

use super::dataset::Dataset;
use super::probe::Probe;
use super::train::Train;
use super::{GpuArgs, MAX_SAMPLING_STEPS};
use pictures::Album;
use report::{Leak, Report};
use unseen::Unseen;

/// Train two features on a tiny model that comes with Strata, and show that each fires on its tag alone
///
/// The model draws portraits of 64×64 pixels; it has never seen a crest of violet and cyan hair, nor a jacket of black
/// and gold checks. Pictures of both are written, checked and learned in the keys and values of cross-attention, the crest first,
/// then the jacket beside it, each with a key for its tag; and once more as ordinary LoRAs, for comparison. Then portraits are drawn
/// without a tag, with each and with both: by the base model, with the ordinary LoRAs, with Strata's files always on, as any program
/// has them, and behind their gates. It is counted how much of each feature they show, and how much of all else stays.
#[derive(clap::Args)]
#[command(after_help = "\
Every command that is run is printed first, and works alone. Nothing is downloaded.

Examples:
  strata demo
  strata demo --out /tmp/demo --steps 200
  strata demo --pictures-only --prompts 32")]
pub struct Demo {
    /// Folder to write to
    #[arg(long, value_name = "FOLDER", default_value = "demo")]
    out: PathBuf,
    /// Updates of each LoRA
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,
    /// Prompts that are drawn and scored, at most 64
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=pictures::PROMPTS))]
    prompts: u16,
    /// Times that the model is run for a picture
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=MAX_SAMPLING_STEPS))]
    sampling_steps: u16,
    /// Do not train; draw with the LoRAs of an earlier demo, and write its report
    #[arg(long, conflicts_with = "steps")]
    pictures_only: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gpu: GpuArgs,
}

/// A command as it is typed.
#[derive(Parser)]
struct Line<A: clap::Args> {
    #[command(flatten)]
    command: A,
}

/// Runs commands one after the other, each shown and timed.
struct Script<'a, W: Write> {
    out: &'a mut W,
    gpu: &'a Gpu,
    seconds: BTreeMap<&'static str, f64>,
}

impl<W: Write> Script<'_, W> {
    /// Runs `strata NAME…` with arguments, as if it had been typed.
    fn run<A: clap::Args>(
        &mut self,
        stage: &'static str,
        name: &str,
        arguments: &[&str],
        run: impl FnOnce(&A, &Gpu, &mut W) -> Result<()>,
    ) -> Result<()> {
        writeln!(
            self.out,
            "\n$ strata {name} {}",
            arguments.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" ")
        )?;
        let line = Line::<A>::try_parse_from([&["strata"], arguments].concat())?;
        self.timed(stage, |script| run(&line.command, script.gpu, script.out))
    }

    fn timed<T>(&mut self, stage: &'static str, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let done = run(self)?;
        self.seconds.insert(stage, start.elapsed().as_secs_f64());
        Ok(done)
    }
}

impl Demo {
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        check_folder(&self.out).context("--out")?;
        let folder = self.out.display();
        ensure!(
            !self.pictures_only || self.out.join("model").is_dir(),
            "--pictures-only: {folder} has no earlier demo; run `strata demo --out {folder}` first"
        );
        let gpu = self.gpu.open()?;
        match self.json {
            true => writeln!(out, "{}", self.show(&gpu, &mut io::sink())?.to_json()?)?,
            false => {
                let report = self.show(&gpu, out)?;
                write!(out, "{}", report.to_text())?;
                for file in ["grid.png", "report.html", "demo.json"] {
                    writeln!(out, "wrote {}", self.out.join(file).display())?;
                }
            }
        }
        Ok(())
    }

    /// All stages. What they print goes to `out`.
    fn show<W: Write>(&self, gpu: &Gpu, out: &mut W) -> Result<Report> {
        let folder = &self.out;
        let mut script = Script { out, gpu, seconds: BTreeMap::new() };
        if !self.pictures_only {
            files::write(folder, self.steps)?;
            self.train_and_probe(&mut script)?;
        }
        let again = ["demo", "--pictures-only"].map(str::to_owned).into_iter().chain(self.arguments());
        writeln!(script.out, "\n$ strata {}", again.map(|a| quoted(&a)).collect::<Vec<_>>().join(" "))?;
        let (prompts, steps) = (self.prompts.into(), self.sampling_steps.into());
        let album = script.timed("pictures", |script| Album::draw(script.gpu, folder, prompts, steps))?;
        album.write(folder)?;
        let adapter = gpu.caps().name.clone();
        let report = Report::new(&album, adapter, self.sampling_steps, Leak::read(folder)?, script.seconds)?;
        report.write(folder)?;
        Ok(report)
    }

    fn train_and_probe<W: Write>(&self, script: &mut Script<'_, W>) -> Result<()> {
        let path = |name: &str| self.out.join(name).display().to_string();
        let configs = [files::FEATURES, files::PLAIN].map(|name| path(&format!("{name}.toml")));
        let [ours, plain] = configs.each_ref().map(String::as_str);
        script.run(
            "check",
            "dataset",
            &["check", ours, "--html", &path("check.html")],
            |check: &Dataset, _, out| check.run(out),
        )?;
        for (stage, config) in [("train", ours), ("train plain", plain)] {
            script.run(stage, "train", &[config], |train: &Train, gpu, out| {
                train.run_on(|| Ok(gpu.clone()), out)
            })?;
        }
        let (model, prompts) = (path("model"), path("prompts.txt"));
        for (stage, config, to) in
            [("probe", files::FEATURES, "probe"), ("probe plain", files::PLAIN, "probe-plain")]
        {
            let mut arguments = vec![model.clone()];
            for feature in Unseen::ALL {
                let lora = pictures::lora(&self.out, config, feature).display().to_string();
                arguments.extend(["--lora".into(), lora, "--class".into(), files::class(feature).to_owned()]);
            }
            arguments.extend(["--prompts".into(), prompts.clone(), "--out".into(), path(to)]);
            arguments.extend(["--samples", "1", "--pictures", "0", "--no-blocks"].map(str::to_owned));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            script.run(stage, "probe", &arguments, |probe: &Probe, gpu, out| {
                probe.run_on(|| Ok(gpu.clone()), out)
            })?;
        }
        Ok(())
    }

    /// What makes a second run draw the same pictures.
    fn arguments(&self) -> Vec<String> {
        let numbers = [("--prompts", self.prompts), ("--sampling-steps", self.sampling_steps)];
        let mut arguments = vec!["--out".to_owned(), self.out.display().to_string()];
        arguments
            .extend(numbers.into_iter().flat_map(|(flag, number)| [flag.to_owned(), number.to_string()]));
        arguments
    }
}

/// An argument as a shell wants it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}
