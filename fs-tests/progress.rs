//! Pull progress: the drawing on a terminal, plain lines, and JSON for programs.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Compression, Image};
use super::support::registry::{Content, Reply, Server, command, pull};
use super::support::tar::Tar;
use super::support::terminal::{Screen, Terminal};

const MIB: usize = 1 << 20;

fn noise(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn small(n: usize) -> Vec<u8> {
    Tar::new().file(format!("file-{n}"), vec![n as u8; 3000]).finish()
}

/// Whether the registry serves its layers yet.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait(&self) {
        let _open = self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap();
    }
}

/// A registry that breaks the connection within the first layer, after 1 MiB of 4, and serves no other layer and no
/// more of that one before its gate is opened.
struct GatedRegistry {
    env: TestEnv,
    server: Server,
    gate: Arc<Gate>,
    /// The layers' short IDs, as users see them.
    ids: Vec<String>,
    digest: String,
}

impl GatedRegistry {
    /// An image with this many small layers on top of the big one.
    fn new(layers: usize) -> Self {
        let big = Tar::new().file("noise", noise(4 * MIB)).finish();
        let image = Image::new().compressed(big, Compression::None);
        let image = (1..=layers).fold(image, |image, n| image.layer(small(n)));
        let (content, digest) = Content::of(&image, "team/app", "1");
        let (big, _) = content.biggest();
        let manifest = content.reply(&super::registry::get("/v2/team/app/manifests/1")).into_body();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let layers = manifest["layers"].as_array().unwrap();
        let digests: Vec<String> = layers.iter().map(|l| l["digest"].as_str().unwrap().to_owned()).collect();
        let ids = digests.iter().map(|digest| digest["sha256:".len()..][..12].to_owned()).collect();
        let gate = Arc::new(Gate::default());
        let server_gate = gate.clone();
        let server = Server::start(move |request| {
            let reply = content.reply(request);
            if request.path == big && request.before == 0 {
                return reply.cut(MIB);
            }
            if digests.iter().any(|digest| request.path.ends_with(digest)) {
                server_gate.wait();
            }
            reply
        });
        Self { env: TestEnv::new(), server, gate, ids, digest }
    }

    fn name(&self) -> String {
        format!("{}/team/app:1", self.server.host)
    }

    fn command(&self, more: &[&str]) -> Command {
        let waits = ["pull", "--retry-pause", "0.02", "--log-level", "error"];
        command(&self.env, &[&waits, more, &[&self.name()]].concat())
    }

    /// A pull on a terminal, at the point where the registry's gate stops it.
    fn start_until_gate(&self, columns: u16, rows: u16) -> Terminal {
        let mut terminal = Terminal::run(&self.command(&[]), columns, rows);
        terminal.wait_until("a stalled download", |s| {
            s.is_cursor_at_end() && s.text().contains("Downloading") && s.text().contains("0B/s")
        });
        terminal
    }

    /// The lines on the terminal after the pull has ended.
    fn transcript(&self) -> String {
        let layers: Vec<String> = self.ids.iter().map(|id| format!("{id}: Pull complete\n")).collect();
        let (layers, name, digest) = (layers.concat(), self.name(), &self.digest);
        format!("1: Pulling from team/app\n{layers}Digest: {digest}\nStatus: Downloaded newer image for {name}\n{name}")
    }

    #[track_caller]
    fn finish(&self, mut terminal: Terminal) {
        self.gate.open();
        let status = terminal.end();
        assert!(status.success(), "{}", terminal.screen.text());
        assert_eq!(terminal.screen.text(), self.transcript());
        assert_eq!(terminal.screen.wrapped, 0, "a line was wider than the terminal");
        assert!(terminal.screen.is_cursor_at_end());
    }
}

#[test]
fn each_layers_line_is_updated_in_place() {
    let registry = GatedRegistry::new(4);
    let terminal = registry.start_until_gate(80, 24);
    let id = |n: usize| &registry.ids[n];
    let want = [
        "1: Pulling from team/app".to_owned(),
        format!("{}: Downloading [========>                         ]  1.049MB/4.196MB", id(0)),
        format!("{}: Pulling fs layer", id(1)),
        format!("{}: Pulling fs layer", id(2)),
        format!("{}: Waiting", id(3)),
        format!("{}: Waiting", id(4)),
    ];
    let text = terminal.screen.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..6], want);
    assert!(lines.len() == 7 && lines[6].starts_with("Total: 0 of 5 layers  1.049MB/4."), "{text}");
    registry.finish(terminal);
    // A second pull, with nothing to fetch.
    let mut again = Terminal::run(&registry.command(&[]), 80, 24);
    assert!(again.end().success());
    let want = registry.transcript().replace("Pull complete", "Already exists");
    assert_eq!(again.screen.text(), want.replace("Downloaded newer image", "Image is up to date"));
}

#[test]
fn the_drawing_fits_a_small_terminal() {
    let registry = GatedRegistry::new(30);
    for (columns, rows, shown) in [(40, 10, 8), (20, 5, 3), (7, 2, 0)] {
        let mut terminal = Terminal::run(&registry.command(&[]), columns, rows);
        let layers = |s: &Screen| {
            let is_layer = |line: &&str| line.len() > 5 && registry.ids.iter().any(|id| id.starts_with(&line[..6]));
            s.visible().into_iter().filter(is_layer).count()
        };
        // The layers become known one by one, and the total may be on the last usable line before all are: the lines
        // above it are then those printed before the drawing.
        let last = rows as usize - 2;
        terminal.wait_until("a full frame", |s| {
            let is_total_last = s.visible().get(last).is_some_and(|line| line.starts_with("Total"));
            s.is_cursor_at_end() && is_total_last && layers(s) == shown
        });
        let visible = terminal.screen.visible();
        assert_eq!(terminal.screen.lines_with("Total").len(), 1, "{visible:#?}");
        // "1: Pulling from" is not part of the drawing and may wrap.
        assert_eq!(terminal.screen.wrapped, usize::from(columns < 24) * 24 / usize::from(columns), "{visible:#?}");
        terminal.send("\x03");
        assert_eq!(terminal.end().code(), Some(130));
    }
    registry.finish(Terminal::run(&registry.command(&[]), 100, 10));
}

#[test]
fn the_drawing_follows_the_terminal_size() {
    let registry = GatedRegistry::new(4);
    let mut terminal = registry.start_until_gate(120, 30);
    for (columns, bar) in [(70, 23), (50, 0), (90, 43)] {
        terminal.resize(columns, 20);
        let bar = format!("Downloading [{}", "=".repeat(bar / 4));
        let bar = if columns == 50 { "Downloading  1.049MB/4.196MB" } else { &bar };
        let is_redrawn = |s: &Screen| s.is_cursor_at_end() && s.text().contains(bar) && s.wrapped == 0;
        terminal.wait_until(bar, is_redrawn);
        terminal.wait_until("a redrawn frame", |s| {
            let lines: Vec<_> = registry.ids.iter().map(|id| s.lines_with(id).len()).collect();
            s.is_cursor_at_end() && lines == [1; 5] && s.lines_with("Total").len() == 1
        });
    }
    registry.finish(terminal);
}

#[test]
fn retries_warnings_and_interrupts_keep_the_drawing_intact() {
    let registry = GatedRegistry::new(1);
    let pull = command(&registry.env, &["pull", "--retry-pause", "7", &registry.name()]);
    let mut terminal = Terminal::run(&pull, 80, 24);
    let id = registry.ids[0].clone();
    for seconds in [7, 6] {
        let line = format!("{id}: Retrying in {seconds} seconds");
        terminal.wait_until(&line, |s| s.is_cursor_at_end() && s.lines_with(&line).len() == 1);
    }
    // The warning is above the drawing, complete and once.
    let text = terminal.screen.text();
    let warning = "the connection broke after 1048576 of 4195840 bytes; trying again in 7.0 seconds";
    assert!(text.replace('\n', "").contains(warning), "{text}");
    assert!(text.find("trying again") < text.find(&format!("{id}: ")), "{text}");
    terminal.wait_until("two lines for two layers", |s| {
        s.is_cursor_at_end() && registry.ids.iter().all(|id| s.lines_with(&format!("{id}: ")).len() == 1)
    });
    terminal.send("\x03");
    assert_eq!(terminal.end().code(), Some(130));
    assert!(terminal.screen.is_cursor_at_end() && !terminal.screen.text().contains("^C"), "{}", terminal.screen.text());
    let lines = terminal.screen.lines_with(&format!("{id}: "));
    assert!(lines.len() == 1 && lines[0].contains("Retrying in "), "{lines:?}");
    registry.gate.open();
    assert_eq!(run(&mut registry.command(&["-q"])).stdout, format!("{}\n", registry.name()));
    assert_eq!(registry.env.ok(["system", "fsck"]), "");
}

#[test]
fn a_failing_pull_reports_its_error_on_a_terminal() {
    let image = Image::new()
        .layer(small(1))
        .layer(small(2))
        .damage(super::support::oci::Blob::Layer(0), |bytes| *bytes.last_mut().unwrap() ^= 1);
    let (content, _) = Content::of(&image, "team/app", "1");
    let server = Server::start(move |request| content.reply(request));
    let env = TestEnv::new();
    let mut terminal = Terminal::run(&command(&env, &["pull", &format!("{}/team/app:1", server.host)]), 500, 24);
    assert_eq!(terminal.end().code(), Some(1));
    let text = terminal.screen.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[3].starts_with("Error: ") && lines[3].contains("layer 1 of 2"), "{text}");
}

#[test]
fn the_progress_option_selects_the_output_form() {
    let registry = GatedRegistry::new(1);
    registry.gate.open();
    let name = registry.name();
    let on_terminal = |more: &[&str], dumb: bool| {
        let mut command = registry.command(more);
        if dumb {
            command.env("TERM", "dumb");
        }
        let mut terminal = Terminal::run(&command, 80, 24);
        assert!(terminal.end().success(), "{}", terminal.screen.text());
        assert!(terminal.screen.text().ends_with(&name), "{}", terminal.screen.text());
        registry.env.ok(["rmi", &name]);
        terminal.screen.text()
    };
    let plain = |text: &str| {
        let mut lines: Vec<&str> = text.lines().collect();
        // The two lines may come in either order.
        lines[1..3].sort_unstable();
        lines.join("\n")
    };
    let want = plain(&registry.transcript());
    assert_eq!(plain(&on_terminal(&["--progress", "plain"], false)), want);
    assert_eq!(plain(&on_terminal(&[], true)), want);
    assert_eq!(on_terminal(&["--progress=tty"], true), registry.transcript());
    let end = format!("Digest: {}\nStatus: Downloaded newer image for {name}\n{name}", registry.digest);
    assert_eq!(on_terminal(&["--progress=none"], false), end);
    for more in [&["-q"][..], &["-q", "--progress=tty"], &["-q", "--progress=json"]] {
        assert_eq!(on_terminal(more, false), name);
    }
    let wrong = pull(&registry.env, &name, &["--progress=fancy"]);
    assert_eq!(wrong.code, 125, "{wrong:#?}");
    assert!(wrong.stderr.ends_with("See 'plyfs pull --help'.\n"), "{wrong:#?}");
    // Without a terminal the default is plain lines.
    assert_eq!(plain(pull(&registry.env, &name, &[]).stdout.trim_end()), want);
}

/// The JSON objects that a pull printed to standard output, one per line.
#[track_caller]
fn objects(out: &Output) -> Vec<Value> {
    out.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[test]
fn progress_json_reports_every_layers_states() {
    let registry = GatedRegistry::new(4);
    registry.gate.open();
    let out = run(&mut registry.command(&["--progress=json"]));
    assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
    let all = objects(&out);
    assert_eq!(all[0], json!({"status": "Pulling from team/app", "id": "1"}));
    let planned = |id: &String| json!({"status": "Pulling fs layer", "progressDetail": {}, "id": id});
    assert_eq!(all[1..6], registry.ids.iter().map(planned).collect::<Vec<_>>());
    let mut states: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut got: BTreeMap<&str, u64> = BTreeMap::new();
    for object in &all[1..all.len() - 3] {
        let id = object["id"].as_str().unwrap();
        let statuses = states.entry(id).or_default();
        let status = object["status"].as_str().unwrap();
        if statuses.last() != Some(&status) {
            statuses.push(status);
        }
        if let Some(current) = object["progressDetail"]["current"].as_u64() {
            let before = got.insert(id, current).unwrap_or(0);
            assert!(before <= current && current <= object["progressDetail"]["total"].as_u64().unwrap());
        }
    }
    let ends = ["Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete"];
    for (n, id) in registry.ids.iter().enumerate() {
        let begins = ["Pulling fs layer", "Waiting", "Pulling fs layer"];
        let states = &states[id.as_str()];
        match n {
            0 => {
                let broken = ["Pulling fs layer", "Downloading", "Retrying in 1 second"];
                assert_eq!(*states, [&broken[..], &ends[..]].concat());
            }
            1 | 2 => assert_eq!(*states, [&begins[..1], &ends[..]].concat()),
            _ => assert_eq!(*states, [&begins[..], &ends[..]].concat()),
        }
    }
    assert_eq!(got[registry.ids[0].as_str()], 4_195_840, "the last count is not the full size");
    let id = format!("sha256:{}", registry.env.ok(["images", "-q", "--no-trunc"]).trim().trim_start_matches("sha256:"));
    let name = registry.name();
    let end = [
        json!({"status": format!("Digest: {}", registry.digest)}),
        json!({"status": format!("Status: Downloaded newer image for {name}")}),
        json!({"aux": {"ID": id, "Name": name, "Digest": registry.digest}}),
    ];
    assert_eq!(all[all.len() - 3..], end);
    assert!(all.len() < 100, "{} objects for 4 MB", all.len());
    let again = run(&mut registry.command(&["--progress=json"]));
    assert_eq!(
        again.stdout.matches(r#"{"status":"Already exists","progressDetail":{},"id":""#).count(),
        5,
        "{again:#?}"
    );
}

#[test]
fn progress_json_reports_a_failure() {
    let registry = GatedRegistry::new(1);
    registry.gate.open();
    let missing = registry.name().replace(":1", "");
    let out = pull(&registry.env, &missing, &["--progress=json"]);
    let all = objects(&out);
    assert_eq!((out.code, &all[0]), (1, &json!({"status": "Using default tag: latest"})));
    let error = out.stderr.trim_end().trim_start_matches("Error: ");
    assert!(error.contains("404") && out.stderr.lines().count() == 1, "{out:#?}");
    assert_eq!(all[1..], [json!({"errorDetail": {"message": error}, "error": error})]);
    let out = pull(&registry.env, &missing.replace("team", "TEAM"), &["--progress=json"]);
    assert_eq!((out.code, out.stderr.lines().count()), (1, 1));
}

#[test]
fn pulling_all_tags_prints_them_in_dockers_order() {
    let (first, one) = Content::of(&Image::new().layer(small(1)), "team/app", "1");
    let (second, two) = Content::of(&Image::new().layer(small(1)).layer(small(2)), "team/app", "2");
    let server = Server::start(move |request| match first.reply(request) {
        _ if request.path.ends_with("/tags/list") => Reply::new(200).body(r#"{"tags":["1","2"]}"#),
        reply if reply.is_found() => reply,
        _ => second.reply(request),
    });
    let name = format!("{}/team/app", server.host);
    let env = TestEnv::new();
    let plain = pull(&env, &name, &["-a"]).stdout;
    let layers: Vec<&str> = plain.lines().filter(|line| line.contains("Pull complete")).collect();
    assert_eq!(layers.len(), 2, "{plain}");
    let want = format!(
        "1: Pulling from team/app\n{}\nDigest: {one}\n2: Pulling from team/app\n{}: Already exists\n{}\nDigest: {two}\n\
         Status: Downloaded newer image for {name}\n{name}\n",
        layers[0],
        &layers[0][..12],
        layers[1],
    );
    assert_eq!(plain, want);
    let env = TestEnv::new();
    let mut terminal = Terminal::run(&command(&env, &["pull", "-a", &name]), 80, 24);
    assert!(terminal.end().success());
    assert_eq!(terminal.screen.text(), want.trim_end());
    let out = pull(&env, &name, &["-a", "--progress=json"]);
    let aux: Vec<Value> = objects(&out).into_iter().filter(|object| object.get("aux").is_some()).collect();
    assert_eq!(aux.iter().map(|o| o["aux"]["Digest"].as_str().unwrap()).collect::<Vec<_>>(), [&one, &two]);
}
