//! Shell completion scripts and manual pages, generated from the clap parser.

use crate::cli::output::stdout as output;
use crate::cli::{Cli, usage_errors};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs completion bash >/etc/bash_completion.d/plyfs
  plyfs completion zsh >\"${fpath[1]}/_plyfs\"
  plyfs completion fish >~/.config/fish/completions/plyfs.fish")]
pub(in crate::cli) struct CompletionArgs {
    /// Shell: bash, zsh or fish
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
pub(in crate::cli) struct ManArgs {
    /// Directory to write the pages to
    #[arg(value_name = "DIR", num_args = 0..)]
    args: Vec<PathBuf>,
}

/// Prints a shell's completion script.
pub(in crate::cli) fn completion(a: &CompletionArgs) -> anyhow::Result<()> {
    let [name] = usage_errors::exactly("completion", &a.args)?;
    let shell = match name.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        _ => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "plyfs", &mut script);
    output::text(&String::from_utf8(script)?)
}

/// Writes a manual page for each command to a directory.
pub(in crate::cli) fn man(a: &ManArgs) -> anyhow::Result<()> {
    let [folder] = usage_errors::exactly("man", &a.args)?;
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|e| anyhow::anyhow!("cannot write manual pages into {}: {e}", folder.display()))
}
