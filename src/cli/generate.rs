//! What is made of the command line itself: completions for shells, and manual pages.

use super::{Cli, args, output};
use clap::CommandFactory;
use clap_complete::Shell;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  plyfs completion bash >/etc/bash_completion.d/plyfs
  plyfs completion zsh >\"${fpath[1]}/_plyfs\"
  plyfs completion fish >~/.config/fish/completions/plyfs.fish")]
pub(super) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_parser = ["bash", "zsh", "fish"], num_args = 0..)]
    args: Vec<String>,
}

#[derive(clap::Args)]
pub(super) struct ManArgs {
    /// The folder to write the pages into
    #[arg(value_name = "DIR", num_args = 0..)]
    args: Vec<PathBuf>,
}

/// Prints a shell's completions.
pub(super) fn completion(a: &CompletionArgs) -> anyhow::Result<()> {
    let [name] = args::exactly("completion", &a.args)?;
    let shell = match name.as_str() {
        "bash" => Shell::Bash,
        "zsh" => Shell::Zsh,
        _ => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "plyfs", &mut script);
    output::text(&String::from_utf8(script)?)
}

/// Writes a manual page for each verb into a folder.
pub(super) fn man(a: &ManArgs) -> anyhow::Result<()> {
    let [folder] = args::exactly("man", &a.args)?;
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|e| anyhow::anyhow!("cannot write manual pages into {}: {e}", folder.display()))
}
