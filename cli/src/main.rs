//! The `strata` command.
//!
//! Every command parses, calls the crate that does the work, and shows what came of it. Results go to stdout,
//! progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod commands;

use std::io::{self, Write};
use std::process::ExitCode;
#[cfg(unix)]
use std::sync::{Arc, atomic::AtomicBool};

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use strata_model::progress;

/// Trains and runs layered LoRA for Stable Diffusion, on any GPU.
#[derive(Parser)]
#[command(name = "strata", version, after_help = EXAMPLES)]
struct Cli {
    /// Show no progress; notes and errors are said all the same
    ///
    /// Progress is drawn on stderr in a terminal. Elsewhere it is a line at the start, one every half minute and one at the
    /// end.
    #[arg(long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  strata demo                                     two features, trained and shown on a tiny model
  strata devices                                  which GPUs there are
  strata info model.safetensors                   what a model or a LoRA is
  strata layers sd15 --select up_blocks.1         what a pattern selects
  strata train --print-config > run.toml          a config to start from
  strata dataset check run.toml                   what is wrong with pictures and captions
  strata train run.toml                           pictures and captions to a LoRA
  strata generate sd15 --prompt 'a cat' --lora lora.safetensors:0.8
  strata lora info lora.safetensors               what is in a LoRA
  strata probe sd15 --lora lora.safetensors       what a LoRA does with its tag and without
  strata bench                                    how fast kernels and steps are here

`strata COMMAND --help` says more about each.";

#[derive(Subcommand)]
enum Command {
    Demo(commands::demo::Demo),
    Devices(commands::devices::Devices),
    Info(commands::info::Info),
    Layers(commands::layers::Layers),
    Dataset(commands::dataset::Dataset),
    Train(commands::train::Train),
    Generate(commands::generate::Generate),
    Lora(commands::lora_files::Lora),
    Probe(commands::probe::Probe),
    Parity(commands::parity::Parity),
    Bench(commands::bench::Bench),
}

fn main() -> ExitCode {
    let mut out = Stdout(io::stdout());
    let done = match parse() {
        Ok(cli) => run(&cli, &mut out),
        Err(wrong) if wrong.use_stderr() => wrong.exit(),
        Err(help) => help.print().map_err(|e| named(e).into()),
    };
    match done.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // whoever read the output has seen enough, as `head` does
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            // nobody may be listening there either
            let _ = writeln!(io::stderr(), "error: {}", strata_benches::message(&e));
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&with_negative_numbers(Cli::command()).try_get_matches()?)
}

fn run(cli: &Cli, out: &mut impl Write) -> Result<()> {
    outlive_limits()?;
    progress::set_quiet(cli.quiet);
    match &cli.command {
        Command::Demo(command) => command.run(out),
        Command::Devices(command) => command.run(out),
        Command::Info(command) => command.run(out),
        Command::Layers(command) => command.run(out),
        Command::Dataset(command) => command.run(out),
        Command::Train(command) => command.run(out),
        Command::Generate(command) => command.run(out),
        Command::Lora(command) => command.run(out),
        Command::Probe(command) => command.run(out),
        Command::Parity(command) => command.run(out),
        Command::Bench(command) => command.run(out),
    }
}

/// Makes a file that grows past the system's limit (`ulimit -f`) an error of that write: by default it is a signal that ends
/// the process, with what it has learned.
fn outlive_limits() -> io::Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
    Ok(())
}

/// Standard output, whose errors say that they are its own.
struct Stdout(io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output: {error}"))
}

/// Lets options have values such as -1, so that these are refused as numbers and not as options that nobody knows.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let negative = |arg: clap::Arg| match arg.get_long().is_some() && arg.get_action().takes_values() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(negative).mut_subcommands(with_negative_numbers)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}
