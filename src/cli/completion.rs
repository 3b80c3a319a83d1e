//! Shell completion scripts and manual pages, generated from the clap parser; completion of names and paths of images.

use crate::browse::{entries, join, resolve};
use crate::cli::look::target::open_image;
use crate::cli::output::stdout as output;
use crate::cli::{Cli, Command, Global, usage_errors};
use crate::meta::Kind;
use crate::reference::Reference;
use crate::store::{Image, Store, containers};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Names of images, and paths in them, are completed too.

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

#[derive(clap::Args)]
pub(in crate::cli) struct CompleteArgs {
    /// Words of a command line after `plyfs`; the last one is to be completed
    #[arg(value_name = "WORD", num_args = 0.., allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<OsString>,
}

/// Asks `plyfs complete` first. Bash splits words at colons, which names of images have.
const BASH: &str = r#"
_plyfs_in_images() {
    local line=${COMP_LINE:0:COMP_POINT} before words found
    read -ra words <<<"$line"
    [[ $line != *[[:space:]] ]] || words+=('')
    if [[ ${words[-1]} != -* ]]; then
        mapfile -t found < <("${words[0]}" complete "${words[@]:1}" 2>/dev/null)
        if ((${#found[@]})); then
            before=${words[-1]%"${words[-1]##*:}"}
            [[ $COMP_WORDBREAKS = *:* ]] || before=
            COMPREPLY=("${found[@]#"$before"}")
            [[ ${#found[@]} -gt 1 || ${found[0]} = */ ]] && compopt -o nospace 2>/dev/null
            return 0
        fi
    fi
    _plyfs "$@"
}
complete -F _plyfs_in_images -o nosort -o bashdefault -o default plyfs
"#;

/// The same. It stands before the end of clap's script, which calls or registers the function.
const ZSH: &str = r#"functions[_plyfs_static]=$functions[_plyfs]
_plyfs() {
    local -a found
    if [[ ${words[CURRENT]} != -* ]]; then
        found=("${(@f)$(${words[1]} complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
        if [[ -n ${found[1]} ]]; then
            compadd -S '' -- "${found[@]}"
            return 0
        fi
    fi
    _plyfs_static "$@"
}

"#;
const ZSH_END: &str = "if [ \"$funcstack[1]\"";

const FISH: &str = r#"
complete -c plyfs -f -n 'not string match -q -- "-*" (commandline -ct)' -a '(set -l words (commandline -opc); plyfs complete $words[2..-1] (commandline -ct) 2>/dev/null)'
"#;

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
    let script = String::from_utf8(script)?;
    output::text(&match shell {
        Shell::Bash => script + BASH,
        Shell::Zsh => script.replace(ZSH_END, &format!("{ZSH}{ZSH_END}")),
        _ => script + FISH,
    })
}

/// Writes a manual page for each command to a directory.
pub(in crate::cli) fn man(a: &ManArgs) -> anyhow::Result<()> {
    let [folder] = usage_errors::exactly("man", &a.args)?;
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|e| anyhow::anyhow!("cannot write manual pages into {}: {e}", folder.display()))
}

/// Prints what the last word of a command line can be completed to, one candidate per line: the name of an image or a
/// container, or a path in an image, with a slash after a directory. Prints nothing if the command takes no such word.
pub(in crate::cli) fn complete(global: &Global, a: &CompleteArgs) -> anyhow::Result<()> {
    let words = std::iter::once(OsString::from("plyfs")).chain(a.words.iter().cloned());
    let Ok(cli) = Cli::try_parse_from(words) else { return Ok(()) };
    let (args, most_images) = match &cli.command {
        Command::Ls(a) => (a.words(), 1),
        Command::Cat(a) => (a.words(), 1),
        Command::Du(a) => (a.words(), 1),
        Command::Find(a) => (a.words(), 1),
        Command::Layers(a) => (a.words(), 1),
        Command::Diff(a) => (a.words(), 2),
        _ => return Ok(()),
    };
    let Some((last, before)) = args.split_last() else { return Ok(()) };
    let store = if cli.global.root.is_some() { cli.global.store()? } else { global.store()? };
    let found = if before.len() < most_images {
        names(&store, last)?
    } else {
        paths(&store, &before[0], last.as_bytes()).unwrap_or_default()
    };
    output::text(&found.iter().map(|line| format!("{line}\n")).collect::<String>())
}

fn names(store: &Store, prefix: &OsString) -> anyhow::Result<Vec<String>> {
    let catalog = store.catalog()?;
    let images = catalog.images().iter().flat_map(Image::references).filter(|name| name.digest().is_none());
    let images = images.map(Reference::familiar);
    let containers = containers::list(store)?.into_iter().map(|container| container.name);
    let fits = |name: &String| name.as_bytes().starts_with(prefix.as_bytes());
    Ok(images.chain(containers).filter(fits).collect())
}

/// The paths in an image that begin with what has been typed. Names that no command line can hold are left out.
fn paths(store: &Store, image: &OsString, typed: &[u8]) -> Option<Vec<String>> {
    let fs = open_image(store, &store.resolve(image.to_str()?).ok()?).ok()?;
    let (dir, prefix) = typed.split_at(typed.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1));
    let from = resolve(&fs, if dir.is_empty() { b"/" } else { dir }, true).ok()?;
    let is_plain = |name: &str| !name.chars().any(char::is_control);
    let found = entries(&fs, &from).ok()?.into_iter().filter(|entry| entry.name.starts_with(prefix));
    let text = found.filter_map(|entry| {
        let slash = if entry.attr.kind == Kind::Dir { "/" } else { "" };
        let path = String::from_utf8(join(dir, &entry.name)).ok()?;
        is_plain(&path).then_some(path + slash)
    });
    Some(text.collect())
}
