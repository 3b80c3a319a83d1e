//! `explore`: the screen on a terminal, key by key, and the rules of `--ci` without one.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};

use super::support::env::{Output, TestEnv};
use super::support::grid::Grid;
use super::support::oci::Image;
use super::support::tar::{Entry, Tar};
use super::support::terminal::Terminal;

const UP: &str = "\x1b[A";
const DOWN: &str = "\x1b[B";
const RIGHT: &str = "\x1b[C";
const LEFT: &str = "\x1b[D";
const PAGE_DOWN: &str = "\x1b[6~";
const HOME: &str = "\x1b[H";
const END: &str = "\x1b[F";
const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (40, 12)];

fn big() -> Vec<u8> {
    (0..50_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn readme() -> String {
    (1..=300).map(|n| format!("line {n} of the readme\n")).collect()
}

/// Three layers: a base, one that adds, changes and removes files, and one that replaces a file.
fn image() -> Image {
    let base = Tar::new()
        .dir("data")
        .file("data/big", big())
        .file("data/small", b"small")
        .dir("doc")
        .file("doc/readme", readme())
        .dir("etc")
        .add(Entry::file("etc/passwd", b"root:x:0:0::/:/bin/sh\n").owner(7, 8).mode(0o4750))
        .symlink("link", "/etc/passwd")
        .add(Entry::file("etc/shadow", b"secret").mode(0o600))
        .finish();
    let second = Tar::new().file("app/new", [b'n'; 3000]).file("etc/passwd", b"other\n").whiteout("data/big").finish();
    let third = Tar::new().file("app/new", [b'm'; 4000]).finish();
    Image::new().layer(base).layer(second).layer(third).edit_config(|config| {
        config["history"] = json!([
            { "created_by": "/bin/sh -c #(nop) ADD file:1 in / " },
            { "created_by": "/bin/sh -c #(nop) CMD [\"sh\"]", "empty_layer": true },
            { "created_by": "/bin/sh -c install-the-app" },
            { "created_by": "COPY new /app" },
        ]);
    })
}

/// A store with one image, `image`.
fn store(image: &Image) -> TestEnv {
    let env = TestEnv::new();
    image.write_layout(&env.path("layout"));
    env.ok(["pull", &format!("oci:{}", env.path("layout").display())]);
    let id = env.ok(["images", "-q", "--no-trunc"]);
    env.ok(["tag", id.trim(), "image"]);
    env
}

fn explore_with(env: &TestEnv, (columns, rows): (u16, u16), variables: &[(&str, &str)]) -> Terminal<Grid> {
    let mut command = env.command(["explore", "image"]);
    command.env_remove("NO_COLOR").envs(variables.iter().copied());
    let mut terminal = Terminal::run_on(Grid::new(columns, rows), &command, columns, rows);
    terminal.wait_until("the first screen", |s| s.has("Whole image") && s.has("q: quit") | s.has("?: help"));
    terminal
}

fn explore(env: &TestEnv, size: (u16, u16)) -> Terminal<Grid> {
    explore_with(env, size, &[])
}

/// Sends keys and waits until the line with the text is selected.
#[track_caller]
fn select(terminal: &mut Terminal<Grid>, keys: &str, text: &str) {
    terminal.send(keys);
    terminal.wait_until(&format!("{text} as selected"), |s| s.is_selected(text));
}

#[track_caller]
fn press(terminal: &mut Terminal<Grid>, keys: &str, text: &str) {
    terminal.send(keys);
    terminal.wait_until(text, |s| s.has(text));
}

/// Changes the terminal's size and waits for a frame of it.
fn resize(terminal: &mut Terminal<Grid>, columns: u16, rows: u16) {
    let before = terminal.screen.clears;
    terminal.resize(columns, rows);
    terminal.wait_until("a new frame", |s| s.clears > before);
}

/// Requires that the program has ended with that code and left the terminal as it was.
#[track_caller]
fn ends(mut terminal: Terminal<Grid>, code: i32) {
    let status = terminal.end();
    assert_eq!(status.code(), Some(code), "{}", terminal.screen.plain);
    assert_eq!(terminal.screen.modes, [25].into(), "only the cursor is on");
    let (before, after) = (&terminal.settings, terminal.settings_now());
    assert_eq!(after.local_modes, before.local_modes);
    assert_eq!((after.input_modes, after.output_modes), (before.input_modes, before.output_modes));
}

#[test]
fn the_tree_is_walked_by_keys_at_every_size() {
    let env = store(&image());
    for size in SIZES {
        let mut terminal = explore(&env, size);
        let screen = &terminal.screen;
        assert!(screen.is_selected("> app/"), "{}", screen.lines().join("\n"));
        let wanted = ["> data/", "> doc/", "> etc/", "link -> /etc/passwd"];
        assert!(wanted.iter().all(|line| screen.has(line)), "{}", screen.lines().join("\n"));
        select(&mut terminal, &DOWN.repeat(3), "> etc/");
        press(&mut terminal, RIGHT, "shadow");
        select(&mut terminal, RIGHT, "  passwd");
        // Owner and mode are those of the topmost layer's file.
        press(&mut terminal, DOWN, "-rw------- 0:0 6B /etc/shadow");
        select(&mut terminal, LEFT, "v etc/");
        terminal.send(LEFT);
        terminal.wait_until("a collapsed directory", |s| s.is_selected("> etc/") && !s.has("shadow"));
        select(&mut terminal, END, "link -> ");
        select(&mut terminal, HOME, "> app/");
        select(&mut terminal, "\r", "v app/");
        select(&mut terminal, "j", "  new");
        terminal.send("q");
        ends(terminal, 0);
    }
}

#[test]
fn a_layer_is_chosen_and_its_changes_are_marked() {
    let env = store(&image());
    for size in SIZES {
        let mut terminal = explore(&env, size);
        select(&mut terminal, "\t", "COPY new /app");
        assert!(!terminal.screen.has("+ "), "the whole image has no marks");
        select(&mut terminal, UP, "RUN install");
        if size.0 < 60 {
            terminal.send("\t");
        }
        terminal.wait_until("the view", |s| s.has("As of layer 2"));
        let mark = |s: &Grid, name: &str| {
            let (row, column) = s.find(name).unwrap();
            let line: Vec<char> = s.lines()[row].chars().collect();
            let start = line[..column].iter().rposition(|c| *c == '│').map_or(0, |at| at + 1);
            line[start]
        };
        for (name, want) in [("app/", '+'), ("data/", '~'), ("doc/", ' '), ("etc/", '~'), ("link", ' ')] {
            assert_eq!(mark(&terminal.screen, name), want, "{name}: {}", terminal.screen.lines().join("\n"));
        }
        if size.0 >= 60 {
            terminal.send("\t");
        }
        select(&mut terminal, HOME, "app/");
        press(&mut terminal, &format!("{DOWN}{RIGHT}"), "  big");
        assert_eq!((mark(&terminal.screen, "  big"), mark(&terminal.screen, "  small")), ('-', ' '));
        let colors = ["  big", "~", "+"].map(|text| terminal.screen.style_of(text).color);
        assert_eq!(colors, [Some(1), Some(3), Some(2)]);
        // Only the changes.
        press(&mut terminal, "m", "Only changes of layer 2");
        terminal.wait_until("only changes", |s| s.has("  big") && !s.has("small") && !s.has("doc/"));
        press(&mut terminal, "m", "Whole image");
        assert!(!terminal.screen.has("  big") && terminal.screen.has("  small"));
        terminal.send("\x03");
        ends(terminal, 0);
    }
}

#[test]
fn marks_need_no_colors() {
    let env = store(&image());
    let mut terminal = explore_with(&env, (80, 24), &[("NO_COLOR", "1")]);
    press(&mut terminal, "m", "~     4kB > app/");
    assert_eq!(terminal.screen.style_of("~     4kB > app/").color, None);
    terminal.send("q");
    ends(terminal, 0);
}

#[test]
fn entries_are_sorted_by_name_or_size() {
    let env = store(&image());
    let mut terminal = explore(&env, (80, 24));
    let order = |s: &Grid| {
        let row = |name| s.find(name).map(|(row, _)| row);
        ["app/", "data/", "doc/", "etc/"].map(|name| row(name).unwrap())
    };
    let by_name = order(&terminal.screen);
    assert!(by_name.is_sorted(), "{by_name:?}");
    select(&mut terminal, &DOWN.repeat(3), "etc/");
    press(&mut terminal, "s", "Whole image, by size");
    let [app, data, doc, etc] = order(&terminal.screen);
    assert!(doc < app && app < etc && etc < data, "{}", terminal.screen.lines().join("\n"));
    assert!(terminal.screen.is_selected("etc/"), "the selection moved");
    // A directory's size is the sum of its files.
    assert!(terminal.screen.has("4kB > app/"));
    press(&mut terminal, "s", "Whole image, by name");
    terminal.send("q");
    ends(terminal, 0);
}

#[test]
fn a_search_finds_names_in_collapsed_directories() {
    let env = store(&image());
    let mut terminal = explore(&env, (80, 24));
    select(&mut terminal, "/s", "  small");
    select(&mut terminal, "h", "  shadow");
    press(&mut terminal, "?", "(no name contains sh?)");
    terminal.send("\x7f\r");
    // The next ones, around the end and back.
    select(&mut terminal, "/a", "  shadow");
    terminal.send("\r");
    select(&mut terminal, "n", "app/");
    select(&mut terminal, "n", "data/");
    select(&mut terminal, "N", "app/");
    select(&mut terminal, "N", "  shadow");
    terminal.send("q");
    ends(terminal, 0);
}

#[test]
fn wasted_space_is_listed_largest_first() {
    let env = store(&image());
    for size in SIZES {
        let mut terminal = explore(&env, size);
        press(&mut terminal, "w", "Wasted: 53kB");
        let rows =
            ["50kB     1         2  /data/big", "3kB     2         3  /app/new", "22B     1         2  /etc/passwd"];
        let rows = rows.map(|row| terminal.screen.find(row).unwrap_or_else(|| panic!("{row}")).0);
        assert!(rows.is_sorted());
        // Where the file was.
        terminal.send(&format!("{DOWN}\r"));
        terminal.wait_until("the file in the tree", |s| s.has("As of layer 2") && s.is_selected("  new"));
        terminal.send("q");
        ends(terminal, 0);
    }
}

#[test]
fn files_are_viewed_as_text_or_hex() {
    let env = store(&image());
    for size in SIZES {
        let mut terminal = explore(&env, size);
        select(&mut terminal, &format!("{DOWN}{DOWN}{RIGHT}{DOWN}"), "readme");
        press(&mut terminal, "\r", "line 1 of the readme");
        press(&mut terminal, DOWN, "line 2 of the readme");
        terminal.wait_until("the second line on top", |s| !s.has("line 1 of") && s.lines()[2].starts_with("line 2 "));
        terminal.send(PAGE_DOWN);
        terminal.wait_until("another page", |s| !s.has("line 2 of"));
        press(&mut terminal, END, "line 300 of the readme");
        assert!(
            terminal.screen.has(&format!("line {} of", 300 - (size.1 - 5))),
            "{}",
            terminal.screen.lines().join("\n")
        );
        terminal.send(UP);
        terminal.wait_until("the line above", |s| !s.has("line 300 of"));
        press(&mut terminal, &format!("{HOME}h"), "00000000  6c 69 6e 65");
        assert!(terminal.screen.has("|line"));
        press(&mut terminal, "h", "line 1 of the readme");
        press(&mut terminal, "q", "Whole image");
        // What is no text is shown in hex at once; also a file that a later layer has removed.
        select(&mut terminal, "/small\r", "small");
        press(&mut terminal, "m", "As of layer 3");
        terminal.send("\t");
        terminal.send(UP);
        terminal.send(if size.0 < 60 { "\t" } else { "" });
        terminal.wait_until("layer 2", |s| s.has("As of layer 2"));
        terminal.send(if size.0 < 60 { "" } else { "\t" });
        select(&mut terminal, UP, "  big");
        let start: String = big()[..4].iter().map(|byte| format!(" {byte:02x}")).collect();
        press(&mut terminal, "\r", &format!("00000000 {start}"));
        terminal.send("\x03");
        ends(terminal, 0);
    }
}

#[test]
fn files_and_directories_are_extracted() {
    let base = Tar::new()
        .dir("d")
        .add(Entry::file("d/set", b"content").mode(0o4755).mtime(1_600_000_000, 0))
        .symlink("d/out", "/nowhere/at/all")
        .symlink("d/up", "..")
        .add(Entry::dir("d/sub").mode(0o750))
        .file("d/sub/big", big())
        .finish();
    let env = store(&Image::new().layer(base));
    let outside = env.path("outside");
    fs::create_dir(&outside).unwrap();
    let to = outside.join("copy");
    let mut terminal = explore(&env, (120, 40));
    let ask = format!("x\x15{}\r", to.display());
    press(&mut terminal, &ask, "Extracted 2 files, 50kB");
    assert_eq!(fs::read(to.join("sub/big")).unwrap(), big());
    let set = fs::metadata(to.join("set")).unwrap();
    assert_eq!((set.permissions().mode() & 0o7777, set.mtime()), (0o755, 1_600_000_000));
    assert_eq!(fs::metadata(to.join("sub")).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(to.join("out")).unwrap().to_str(), Some("/nowhere/at/all"));
    assert_eq!(fs::read_link(to.join("up")).unwrap().to_str(), Some(".."));
    // Nothing is overwritten, and a link at the destination is not followed.
    press(&mut terminal, &ask, "it exists already");
    fs::write(outside.join("target"), "kept").unwrap();
    std::os::unix::fs::symlink("target", outside.join("trap")).unwrap();
    select(&mut terminal, "/set\r", "  set");
    press(&mut terminal, &format!("x\x15{}/trap\r", outside.display()), "it exists already");
    assert_eq!(fs::read(outside.join("target")).unwrap(), b"kept");
    press(&mut terminal, &format!("x\x15{}/one\r", outside.display()), "Extracted 1 files, 7B");
    assert_eq!(fs::read(outside.join("one")).unwrap(), b"content");
    press(&mut terminal, "x", "Extract to: set");
    terminal.send("\x1b");
    terminal.wait_until("no prompt", |s| !s.has("Extract to"));
    terminal.send("q");
    ends(terminal, 0);
}

#[test]
fn the_help_names_the_keys() {
    let env = store(&image());
    for size in SIZES {
        let mut terminal = explore(&env, size);
        press(&mut terminal, "?", "switch between layers");
        terminal.send(END);
        press(&mut terminal, END, "removed by this layer");
        press(&mut terminal, "?", "Whole image");
        terminal.send("q");
        ends(terminal, 0);
    }
}

#[test]
fn the_screen_follows_the_terminals_size() {
    let env = store(&image());
    let mut terminal = explore(&env, (80, 24));
    let before = terminal.screen.lines();
    for (columns, rows) in [(120, 40), (1, 1), (2, 2), (3, 3), (20, 4), (5, 30), (59, 6), (80, 24)] {
        resize(&mut terminal, columns, rows);
    }
    terminal.wait_until("the first screen again", |s| s.lines() == before);
    for keys in [DOWN, "\t", UP, "w", "q", "?", "q", "/a\r", "m", "\r", "h"] {
        resize(&mut terminal, 1, 1);
        terminal.send(keys);
        resize(&mut terminal, 7, 3);
    }
    terminal.send("\x03");
    ends(terminal, 0);
}

#[test]
fn the_mouse_selects_expands_and_scrolls() {
    let env = store(&image());
    let mut terminal = explore(&env, (80, 24));
    assert!(terminal.screen.modes.is_superset(&[1000, 1006, 1049].into()));
    let click = |terminal: &mut Terminal<Grid>, text: &str| {
        let (row, column) = terminal.screen.find(text).unwrap();
        terminal.send(&format!("\x1b[<0;{0};{1}M\x1b[<0;{0};{1}m", column + 1, row + 1));
    };
    click(&mut terminal, "etc/");
    terminal.wait_until("an expanded directory", |s| s.is_selected("v etc/") && s.has("  shadow"));
    click(&mut terminal, "  shadow");
    terminal.wait_until("a selected file", |s| s.is_selected("  shadow"));
    click(&mut terminal, "RUN install");
    terminal.wait_until("another layer", |s| s.is_selected("RUN install") && s.has("As of layer 2"));
    let (row, column) = terminal.screen.find("etc/").unwrap();
    terminal.send(&format!("\x1b[<64;{};{}M\t", column + 1, row + 1));
    terminal.wait_until("a scrolled list", |s| s.is_selected("doc/"));
    terminal.send("q");
    ends(terminal, 0);
}

#[test]
fn signals_leave_the_terminal_as_it_was() {
    let env = store(&image());
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::INT, 130)] {
        let mut terminal = explore(&env, (80, 24));
        press(&mut terminal, "?", "switch between layers");
        assert!(terminal.settings_now().local_modes != terminal.settings.local_modes, "not in raw mode");
        kill_process(terminal.process(), signal).unwrap();
        ends(terminal, code);
    }
}

#[test]
fn a_closed_terminal_ends_the_program() {
    let env = store(&image());
    for session in [&["setsid", "--ctty"][..], &["env"]] {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let user = rustix::fs::open(ptsname(&controller, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
        let user = File::from(user);
        let command = env.command(["explore", "image"]);
        let mut outer = Command::new(session[0]);
        outer.args(&session[1..]).arg(command.get_program()).args(command.get_args()).stderr(Stdio::null());
        outer.stdin(user.try_clone().unwrap()).stdout(user);
        let mut child = outer.spawn().unwrap();
        // The child has the only other descriptors of the terminal.
        drop(outer);
        let mut controller = File::from(controller);
        let mut shown = Vec::new();
        while !String::from_utf8_lossy(&shown).contains("quit") {
            let mut buffer = [0; 4096];
            let read = controller.read(&mut buffer).unwrap();
            shown.extend_from_slice(&buffer[..read]);
        }
        drop(controller);
        let until = Instant::now() + Duration::from_secs(4);
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > until => {
                    child.kill().unwrap();
                    panic!("{session:?}: it goes on without a terminal");
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        assert_eq!(status.code(), Some(129), "{session:?}");
    }
}

#[test]
fn hostile_names_never_reach_the_terminal_raw() {
    let names = ["a\x1b[31mred", "b\u{202e}txt.exe", "c\nnewline", "d\u{9b}csi", "e\u{2066}x", "f\u{200f}y"];
    let tar = names.iter().fold(Tar::new(), |tar, name| tar.file(name, b"\x1b[2Jcontent"));
    let tar = tar.file(b"g\xff", "\u{202e}text").symlink("h", "\x1b]0;title\x07").file("i\r", "first\r\x1bc");
    let image = Image::new().layer(tar.finish()).edit_config(|config| {
        config["history"] = json!([{ "created_by": "/bin/sh -c \x1b[5mblink\u{202e}" }]);
    });
    let env = store(&image);
    let mut terminal = explore(&env, (120, 40));
    // `Grid` panics at each raw control character.
    for text in ["\\u{1b}[31mred", "\\u{202e}txt.exe", "c\\nnewline", "\\u{9b}csi", "g\\xff", "-> \\u{1b}]0;title"] {
        assert!(terminal.screen.has(text), "{text}: {}", terminal.screen.lines().join("\n"));
    }
    assert!(terminal.screen.has("RUN \\u{1b}[5mblink\\u{202e}"));
    press(&mut terminal, "\r", "|.[2Jcontent|");
    press(&mut terminal, "h", "\\u{1b}[2Jcontent");
    press(&mut terminal, "q", "Whole image");
    press(&mut terminal, &format!("{END}{UP}{UP}\r"), "\\u{202e}text");
    terminal.send("q");
    // A name is the proposed destination.
    press(&mut terminal, &format!("{HOME}x"), "Extract to: a\\u{1b}[31mred");
    terminal.send("\x03");
    ends(terminal, 0);
}

#[test]
fn without_a_terminal_only_rules_are_checked() {
    let env = store(&image());
    assert_eq!(
        env.fails(["explore", "--pull=never", "image"]),
        "Error: explore needs a terminal as standard input and output; use --ci without one"
    );
    let rules = env.path("rules");
    fs::write(&rules, "").unwrap();
    assert!(env.fails(["explore", "--pull=never", "--ci", rules.to_str().unwrap(), "none"]).contains("none"));
}

#[test]
fn rules_pass_or_fail() {
    let env = store(&image());
    let rules = env.path("rules");
    let check = |text: &str, more: &[&str]| -> Output {
        fs::write(&rules, text).unwrap();
        env.run([&["explore", "--ci", rules.to_str().unwrap()], more, &["image"]].concat())
    };
    let total = 50_000 + 5 + readme().len() + 22 + 6 + 3000 + 6 + 4000;
    let wasted = 50_000 + 22 + 3000;
    let efficiency = 1.0 - wasted as f64 / total as f64;
    for (text, want, code) in [
        ("", String::new(), 0),
        ("lowestEfficiency: disabled", String::new(), 0),
        ("rules:\n  lowestEfficiency: 0.1 # low", format!("PASS lowest-efficiency {efficiency:.3} >= 0.1\n"), 0),
        ("lowest-efficiency = 0.95", format!("FAIL lowest-efficiency {efficiency:.3} < 0.95\n"), 1),
        ("highestWastedBytes: 1MB", format!("PASS highest-wasted-bytes {wasted} <= 1000000\n"), 0),
        ("highest-wasted-bytes: 53kB", format!("FAIL highest-wasted-bytes {wasted} > 53000\n"), 1),
        ("highestUserWastedPercent: 0.5", "PASS highest-user-wasted-percent 0.428 <= 0.5\n".into(), 0),
        (
            "highest-user-wasted-percent: 0.1\nlowest-efficiency: 0",
            format!("FAIL highest-user-wasted-percent 0.428 > 0.1\nPASS lowest-efficiency {efficiency:.3} >= 0\n"),
            1,
        ),
    ] {
        let output = check(text, &[]);
        assert_eq!((output.stdout, output.code, output.stderr), (want, code, String::new()), "{text}");
    }
    let output = check("highest-wasted-bytes: 1\nlowest-efficiency: 0", &["--format", "json"]);
    let lines: Vec<Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({ "rule": "highest-wasted-bytes", "pass": false, "value": wasted, "limit": 1 }));
    assert_eq!((lines.len(), &lines[1]["pass"], output.code), (2, &json!(true), 1));
    let at = rules.to_str().unwrap();
    for (text, why) in [
        ("\nfastest: 1", format!("Error: {at}:2: unknown rule \"fastest\"")),
        (
            "lowestEfficiency: high",
            format!("Error: {at}:1: lowestEfficiency must be a number from 0 to 1, not \"high\""),
        ),
    ] {
        let output = check(text, &[]);
        assert_eq!((output.code, output.stderr.trim_end()), (1, why.as_str()));
    }
}
