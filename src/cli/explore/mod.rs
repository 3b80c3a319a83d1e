//! `explore`: looks into an image's layers on a terminal, or checks their efficiency by rules.

mod ci;
mod draw;
mod extract;
mod geometry;
mod help;
mod screen;
mod state;
mod viewer;

use crate::browse::Stack;
use crate::cli::image::history;
use crate::cli::registry::pull;
use crate::cli::{Exit, Global, usage_errors};
use crate::name::show;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use screen::{HANGUP, Screen};
use state::{Layer, State};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

/// The most events that are handled before the next frame.
const BURST: usize = 256;
/// How often the size of the terminal is asked for while no event comes.
const SIZE_INTERVAL: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
#[command(override_usage = "plyfs explore [OPTIONS] IMAGE")]
#[command(after_help = "\
Shows the layers of an image, what each of them adds, changes and removes, the
space that files hidden by later layers take, and the content of files. Press ?
for the keys. An extracted file belongs to the user, without set-ID bits.

Rules, one per line, as KEY: VALUE or KEY = VALUE; `disabled` skips one:
  lowest-efficiency            share of the layers' data that the image shows,
                               0 to 1
  highest-wasted-bytes         data of files that a later layer hides, such as
                               20MB
  highest-user-wasted-percent  the same as a share of the data in the layers
                               above the base layer, 0 to 1
The spelling of dive's rules is accepted too, such as lowestEfficiency. The exit
code is 1 if the image breaks a rule.

Examples:
  plyfs explore debian:12
  plyfs explore --ci rules.yaml me/app:1
  plyfs explore --ci rules.yaml --format json me/app:1 | jq -r .rule")]
pub(in crate::cli) struct ExploreArgs {
    /// Check the image by the rules in a file, without a terminal
    #[arg(long, value_name = "RULES")]
    ci: Option<PathBuf>,
    /// Output of --ci: text, or json for one object per line
    #[arg(long, value_name = "FORMAT", default_value = "text", hide_possible_values = true, requires = "ci")]
    format: ci::Format,
    #[command(flatten)]
    missing: pull::MissingArgs,
    /// Image to explore
    #[arg(value_name = "IMAGE")]
    args: Vec<String>,
}

pub(in crate::cli) fn explore(global: &Global, a: &ExploreArgs) -> anyhow::Result<()> {
    let [wanted] = usage_errors::exactly("explore", &a.args)?;
    let rules = a.ci.as_deref().map(ci::read).transpose()?;
    if rules.is_none() && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        anyhow::bail!("explore needs a terminal as standard input and output; use --ci without one");
    }
    let store = global.store()?;
    let image = a.missing.bring_in(&store, wanted)?;
    let stack = Stack::open(&store, &image)?;
    if let Some(rules) = rules {
        return ci::check(&rules, &stack, a.format);
    }
    let mut commands = history::commands(&store, &image)?.into_iter();
    let layer = |size| Layer { size, command: show(tidy(&commands.next().unwrap_or_default()).as_bytes()) };
    let layers = image.layers.iter().map(|l| l.size).map(layer).collect();
    let has_colors = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut screen = Screen::begin()?;
    let mut state = State::new(stack, show(wanted.as_bytes()), layers, Screen::size()?)?;
    match run(&mut state, &mut screen, has_colors) {
        // Reading or writing has failed before the signal of the hangup was received.
        Err(_) if Screen::is_closed() => Err(Exit::Said(HANGUP).into()),
        ended => ended,
    }
}

/// Draws, waits for an event, handles it and those that follow at once, until the program must end.
fn run(state: &mut State, screen: &mut Screen, has_colors: bool) -> anyhow::Result<()> {
    let mut is_changed = true;
    while !state.is_done {
        // Asked each time: crossterm loses a change of the size that comes together with a key, and its event has the
        // size of the controlling terminal, which may be another one.
        let size = Screen::size()?;
        if size != state.areas.size {
            state.resize(size);
            is_changed = true;
        }
        if is_changed {
            state.refresh();
            screen.frame(state.areas.size, |buffer| draw::draw(state, has_colors, buffer))?;
            is_changed = false;
        }
        for at in 0..BURST {
            if !event::poll(if at == 0 { SIZE_INTERVAL } else { Duration::ZERO })? {
                break;
            }
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => {
                    state.key(key);
                    is_changed = true;
                }
                Event::Mouse(event) => is_changed |= state.mouse(event),
                Event::Resize(..) => is_changed = true,
                _ => {}
            }
            if state.is_done {
                break;
            }
        }
    }
    Ok(())
}

/// Shortens a command as a history has it: what every step begins with says nothing.
fn tidy(command: &str) -> String {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(rest) = command.strip_prefix("/bin/sh -c #(nop)") {
        return words(rest);
    }
    match command.strip_prefix("/bin/sh -c ") {
        Some(rest) => format!("RUN {}", words(rest)),
        None => words(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_lose_the_shell_in_front() {
        for (command, want) in [
            ("/bin/sh -c #(nop) ADD file:0 in / ", "ADD file:0 in /"),
            ("/bin/sh -c apt-get update \t && true", "RUN apt-get update && true"),
            ("COPY . /app # buildkit", "COPY . /app # buildkit"),
            ("", ""),
        ] {
            assert_eq!(tidy(command), want);
        }
    }
}
