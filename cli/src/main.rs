//! The `strata` command.
//!
//! Every command parses, calls the crate that does the work, and shows what came of it. Results go to stdout,
//! progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.

mod commands;

use std::io::{self, Write};
use std::process::ExitCode;

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
    let matches = with_negative_numbers(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    progress::set_quiet(cli.quiet);
    let mut out = io::stdout().lock();
    let done = match &cli.command {
        Command::Demo(command) => command.run(&mut out),
        Command::Devices(command) => command.run(&mut out),
        Command::Layers(command) => command.run(&mut out),
        Command::Dataset(command) => command.run(&mut out),
        Command::Train(command) => command.run(&mut out),
        Command::Generate(command) => command.run(&mut out),
        Command::Lora(command) => command.run(&mut out),
        Command::Probe(command) => command.run(&mut out),
        Command::Parity(command) => command.run(&mut out),
        Command::Bench(command) => command.run(&mut out),
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
