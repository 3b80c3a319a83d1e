//! The house rules that a program can see. Each reads the source, so that none is kept by memory alone.

use std::fs;
use std::path::{Path, PathBuf};

/// Files that may be longer than [`MAX_FILE`], and why. Their own tests do not count.
const LONG_FILES: &[(&str, &str)] = &[];
/// Functions that may be longer than [`MAX_FUNCTION`], and why.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];
const MAX_FILE: usize = 800;
const MAX_FUNCTION: usize = 70;
/// What may stand at the top of the project.
const TOP: &[&str] = &[
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "fs-tests",
    "rustfmt.toml",
    "scripts",
    "src",
    "target",
];
/// Which module may import which: the arrows of lib.rs. A module may always import itself.
const IMPORTS: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("name", &[]),
    ("meta", &[]),
    ("whiteout", &["meta", "name"]),
    ("sys", &[]),
    ("template", &[]),
    ("reference", &["digest"]),
    ("backing", &["meta", "sys", "whiteout"]),
    ("layer", &["backing", "digest", "meta", "name", "sys", "whiteout"]),
    ("tree", &["digest", "layer", "meta", "name"]),
    ("upper", &["backing", "digest", "meta", "sys", "whiteout"]),
    ("fs", &["backing", "layer", "meta", "name", "sys", "tree", "upper", "whiteout"]),
    ("fuse", &["fs", "meta", "name", "sys"]),
    ("registry", &["digest", "reference", "sys"]),
    ("store", &["digest", "layer", "reference", "sys", "tree"]),
    ("image", &["backing", "digest", "fs", "layer", "name", "reference", "registry", "store", "sys", "tree", "upper"]),
    ("container", &["backing", "digest", "fs", "fuse", "image", "layer", "meta", "name", "store", "sys", "upper"]),
    (
        "cli",
        &[
            "backing",
            "container",
            "digest",
            "fs",
            "fuse",
            "image",
            "layer",
            "name",
            "reference",
            "registry",
            "store",
            "sys",
            "template",
            "tree",
            "upper",
            "whiteout",
        ],
    ),
];

struct Source {
    /// From the project's top.
    path: String,
    /// Its lines without the tests at its end.
    lines: Vec<String>,
}

impl Source {
    fn is_under(&self, place: &str) -> bool {
        self.path == format!("src/{place}.rs") || self.path.starts_with(&format!("src/{place}/"))
    }

    /// Its lines with comments cut off, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines.iter().enumerate().map(|(at, line)| (at + 1, without_comment(line)))
    }
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with("//") {
        return "";
    }
    line.find(" // ").map_or(line, |at| &line[..at])
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn sources(dir: &str) -> Vec<Source> {
    let mut paths = Vec::new();
    files(&top().join(dir), &mut paths);
    paths.sort();
    assert!(!paths.is_empty(), "no source under {dir}");
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().take_while(|line| *line != "#[cfg(test)]").map(str::to_string);
        Source { path: path.strip_prefix(top()).unwrap().display().to_string(), lines: code.collect() }
    };
    paths.into_iter().map(read).collect()
}

/// Fails with every place outside of `allowed` where `found` sees a fault.
fn forbid(what: &str, allowed: &[&str], found: impl Fn(&str) -> bool) {
    let mut places = Vec::new();
    for source in sources("src").iter().filter(|s| !allowed.iter().any(|place| s.is_under(place))) {
        places.extend(
            source
                .code()
                .filter(|(_, line)| found(line))
                .map(|(at, line)| format!("{}:{at}: {}", source.path, line.trim())),
        );
    }
    assert!(places.is_empty(), "{what}:\n{}", places.join("\n"));
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

#[test]
fn unsafe_code_stays_in_sys() {
    forbid("unsafe code outside of sys/", &["sys"], |line| has_word(line, "unsafe"));
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    for source in sources("src/sys") {
        for (at, line) in source.code().filter(|(_, line)| has_word(line, "unsafe")) {
            let above = source.lines[..at - 1].iter().rev().take_while(|l| l.trim_start().starts_with("//"));
            assert!(above.into_iter().any(|l| l.contains("SAFETY:")), "{}:{at}: {line}", source.path);
        }
    }
}

#[test]
fn only_fuse_names_fuser() {
    forbid("fuser outside of fuse/", &["fuse"], |line| has_word(line, "fuser"));
}

#[test]
fn only_whiteout_knows_how_deletions_are_written() {
    forbid("a whiteout's name outside of whiteout.rs", &["whiteout"], |line| {
        line.contains("\".wh.") || line.contains("overlay.opaque") || line.contains("overlay.whiteout")
    });
}

#[test]
fn an_index_is_whole_before_any_merge() {
    // What makes an index (layer) cannot see what merges them (tree), and a merge takes indexes only.
    let merge = fs::read_to_string(top().join("src/tree/merge.rs")).unwrap();
    assert!(merge.contains("layers: &[Index]"), "merge no longer takes finished indexes");
    forbid(
        "a merge that reads tars",
        &[
            "layer",
            "image",
            "store",
            "cli",
            "fs",
            "fuse",
            "upper",
            "sys",
            "template",
            "digest",
            "whiteout",
            "name",
            "meta",
            "reference",
            "registry",
            "main",
            "lib",
        ],
        |line| line.contains("index_tar") || line.contains("tar::") || line.contains("whiteout::"),
    );
}

#[test]
fn errno_is_chosen_in_one_place() {
    forbid("an errno outside of fs/error.rs", &["sys", "fs/error"], |line| line.contains("libc::E"));
    let error = fs::read_to_string(top().join("src/fs/error.rs")).unwrap();
    let chosen = &error[error.find("fn errno").expect("fs/error.rs chooses errnos")..];
    let body = &chosen[..chosen.find("\n    }\n").unwrap()];
    assert!(!body.contains("_ =>"), "the choice of an errno is no longer exhaustive");
}

#[test]
fn environment_printing_and_exit_only_at_the_doors() {
    forbid("environment, printing or exit away from the doors", &["cli", "main"], |line| {
        [
            "println!",
            "print!",
            "eprintln!",
            "eprint!",
            "dbg!",
            "process::exit",
            "env::var",
            "env::args",
            "stdout()",
            "stderr()",
        ]
        .iter()
        .any(|word| line.contains(word))
    });
}

#[test]
fn nothing_unwraps_outside_tests() {
    forbid("unwrap, expect or panic outside of tests", &[], |line| {
        [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", ".unwrap_err()"]
            .iter()
            .any(|word| line.contains(word))
    });
}

#[test]
fn imports_follow_the_arrows() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let inside = source.path.trim_start_matches("src/").trim_end_matches(".rs");
        let module = inside.split('/').next().unwrap().to_string();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let allowed = IMPORTS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no row in IMPORTS"))
            .1;
        for (at, line) in source.code() {
            for (start, _) in line.match_indices("crate::") {
                let named: String =
                    line[start + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if !named.is_empty() && named != module && !allowed.contains(&named.as_str()) {
                    wrong.push(format!("{}:{at}: {module} imports {named}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_are_short() {
    let mut long = Vec::new();
    for source in sources("src").into_iter().chain(sources("fs-tests")) {
        if source.lines.len() > MAX_FILE && !LONG_FILES.iter().any(|(path, _)| *path == source.path) {
            long.push(format!("{} has {} lines", source.path, source.lines.len()));
        }
        for (name, lines) in functions(&source) {
            let place = format!("{}: {name}", source.path);
            if lines > MAX_FUNCTION && !LONG_FUNCTIONS.iter().any(|(known, _)| *known == place) {
                long.push(format!("{place} has {lines} lines"));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Functions and their lengths: from the line with `fn` to the closing brace of the same indentation, as rustfmt sets it.
fn functions(source: &Source) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (start, line) in source.lines.iter().enumerate() {
        let code = line.trim_start();
        let head = code.split_once("fn ").filter(|(before, _)| {
            before
                .split_whitespace()
                .all(|w| w.starts_with("pub") || ["const", "unsafe", "async", "extern"].contains(&w))
        });
        let Some((_, name)) = head else { continue };
        let indent = &line[..line.len() - code.len()];
        let closing = format!("{indent}}}");
        if let Some(length) = source.lines[start..].iter().position(|l| *l == closing) {
            found.push((name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect(), length + 1));
        }
    }
    found
}

#[test]
fn every_exception_is_still_needed() {
    let all: Vec<Source> = sources("src").into_iter().chain(sources("fs-tests")).collect();
    for (path, reason) in LONG_FILES {
        assert!(
            !reason.is_empty() && all.iter().any(|s| s.path == *path && s.lines.len() > MAX_FILE),
            "{path} is no exception any more"
        );
    }
    for (place, reason) in LONG_FUNCTIONS {
        let still = all.iter().any(|s| {
            functions(s).iter().any(|(name, lines)| format!("{}: {name}", s.path) == *place && *lines > MAX_FUNCTION)
        });
        assert!(!reason.is_empty() && still, "{place} is no exception any more");
    }
}

#[test]
fn the_top_level_is_tidy() {
    for entry in fs::read_dir(top()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TOP.contains(&name.as_str()), "{name} does not belong at the top of the project");
    }
}
