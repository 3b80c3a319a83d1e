//! Source checks of the project's conventions: module boundaries, unsafe code, file and function lengths, imports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may be longer than [`MAX_FILE`], and why. Their unit tests do not count.
const LONG_FILES: &[(&str, &str)] = &[];
/// Functions that may be longer than [`MAX_FUNCTION`], and why.
const LONG_FUNCTIONS: &[(&str, &str)] = &[];
const MAX_FILE: usize = 800;
const MAX_FUNCTION: usize = 70;
/// The entries allowed in the project's top directory.
const TOP: &[&str] = &[
    ".ci",
    ".git",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "SECURITY.md",
    "deny.toml",
    "fs-tests",
    "rustfmt.toml",
    "scripts",
    "src",
    "target",
];
/// The modules that each module may import, as lib.rs describes them. A module may always import itself.
const IMPORTS: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("name", &[]),
    ("meta", &[]),
    ("whiteout", &["meta", "name"]),
    ("sys", &[]),
    ("template", &[]),
    ("dockerfile", &[]),
    ("reference", &["digest"]),
    ("backing", &["meta", "sys", "whiteout"]),
    ("layer", &["backing", "digest", "meta", "name", "sys", "whiteout"]),
    ("erofs", &["digest", "layer", "meta", "name", "sys", "whiteout"]),
    ("tree", &["digest", "layer", "meta", "name"]),
    ("upper", &["backing", "digest", "meta", "sys", "whiteout"]),
    ("handover", &["sys"]),
    ("fs", &["backing", "handover", "layer", "meta", "name", "sys", "tree", "upper", "whiteout"]),
    ("fuse", &["fs", "handover", "meta", "name", "sys"]),
    ("registry", &["digest", "reference", "sys"]),
    ("store", &["digest", "layer", "reference", "sys", "tree"]),
    (
        "image",
        &[
            "backing",
            "digest",
            "dockerfile",
            "erofs",
            "fs",
            "handover",
            "layer",
            "name",
            "reference",
            "registry",
            "store",
            "sys",
            "tree",
            "upper",
        ],
    ),
    ("kernel", &["erofs", "fs", "image", "store", "sys", "upper"]),
    (
        "container",
        &["backing", "digest", "fs", "fuse", "image", "kernel", "layer", "meta", "name", "store", "sys", "upper"],
    ),
    ("browse", &["digest", "fs", "image", "layer", "meta", "name", "store", "tree"]),
    (
        "build",
        &[
            "browse",
            "container",
            "digest",
            "dockerfile",
            "fs",
            "image",
            "layer",
            "meta",
            "name",
            "reference",
            "store",
            "sys",
            "whiteout",
        ],
    ),
    (
        "cli",
        &[
            "backing",
            "browse",
            "build",
            "container",
            "digest",
            "dockerfile",
            "fs",
            "fuse",
            "handover",
            "image",
            "kernel",
            "layer",
            "meta",
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
    /// Relative to the project's top directory.
    path: String,
    /// The lines of the file without its unit tests at the end.
    lines: Vec<String>,
}

impl Source {
    fn is_under(&self, place: &str) -> bool {
        self.path == format!("src/{place}.rs") || self.path.starts_with(&format!("src/{place}/"))
    }

    /// The lines with comments removed, numbered from 1.
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

/// Fails with every line outside of the `allowed` files for which `found` is true.
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
fn unsafe_code_is_only_in_sys() {
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
fn only_the_whiteout_module_names_whiteout_forms() {
    forbid("a whiteout's name outside of whiteout.rs", &["whiteout"], |line| {
        line.contains("\".wh.") || line.contains("overlay.opaque") || line.contains("overlay.whiteout")
    });
}

#[test]
fn layer_code_does_not_use_merge_code() {
    // The code that builds an index (layer) must not use the code that merges indexes (tree), and a merge takes
    // complete indexes only.
    let merge = fs::read_to_string(top().join("src/tree/merge.rs")).unwrap();
    assert!(merge.contains("layers: &[Index]"), "merge no longer takes finished indexes");
    forbid(
        "a merge that reads tars",
        &[
            "layer",
            "image",
            "build",
            "store",
            "cli",
            "erofs",
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
fn environment_printing_and_exit_are_only_in_entry_points() {
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
fn imports_follow_the_module_order() {
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

/// The files of `src/` by their module path, as `fs::union`; `mod.rs` is its folder's.
fn modules() -> BTreeMap<String, String> {
    let path = |source: &Source| {
        let inside = source.path.trim_start_matches("src/").trim_end_matches(".rs");
        inside.strip_suffix("/mod").unwrap_or(inside).replace('/', "::")
    };
    let code = |source: &Source| source.code().map(|(_, line)| line.to_owned() + "\n").collect::<String>();
    sources("src").iter().map(|source| (path(source), code(source))).collect()
}

/// The trees of the `use` items in code, and whether each is re-exported (`pub use`).
fn uses(code: &str) -> Vec<(bool, String)> {
    let mut found = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let line = line.trim_start();
        let rest = line.strip_prefix("pub").map_or(line, |rest| rest.split_once(' ').map_or(rest, |(_, rest)| rest));
        let Some(tree) = rest.strip_prefix("use ") else { continue };
        let mut tree = tree.to_owned();
        while !tree.contains(';') {
            tree += lines.next().unwrap();
        }
        found.push((line.starts_with("pub"), tree.split(';').next().unwrap().to_owned()));
    }
    found
}

/// The paths of a `use` tree, with its groups expanded.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, rest)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap().to_owned()];
    };
    let (mut depth, mut parts, mut part) = (0, Vec::new(), String::new());
    for c in rest[..rest.rfind('}').unwrap()].chars() {
        match c {
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            c => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    parts.push(part);
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(part)).map(|part| before.to_owned() + &part).collect()
}

/// All paths in code that begin with `crate`, `self` or `super`, and those of its `use` items.
fn paths(code: &str) -> Vec<String> {
    let uses = uses(code).into_iter().flat_map(|(_, tree)| expand(&tree));
    let begins = ["crate::", "self::", "super::"].into_iter().flat_map(|root| code.match_indices(root));
    let inline = begins.map(|(at, _)| code[at..].chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)));
    uses.chain(inline.map(|path| path.collect::<String>())).collect()
}

/// The file that a path resolves to from a module, and the rest of the path.
fn resolve(modules: &BTreeMap<String, String>, from: &str, path: &str) -> Option<(String, Vec<String>)> {
    let mut base: Vec<&str> = from.split("::").collect();
    let mut parts: VecDeque<&str> = path.split("::").filter(|part| !part.is_empty()).collect();
    match *parts.front()? {
        "crate" => base.clear(),
        "self" | "super" => {}
        child if modules.contains_key(&format!("{from}::{child}")) => {}
        _ => return None,
    }
    while let Some(root) = parts.front().filter(|part| ["crate", "self", "super"].contains(part)) {
        if *root == "super" {
            base.pop();
        }
        parts.pop_front();
    }
    base.extend(parts);
    (1..=base.len()).rev().find_map(|len| {
        let module = base[..len].join("::");
        modules.contains_key(&module).then(|| (module, base[len..].iter().map(|part| (*part).to_owned()).collect()))
    })
}

/// The file that defines the item of a path: follows re-exports to their source.
fn source_of(modules: &BTreeMap<String, String>, from: &str, path: &str) -> Option<String> {
    let (mut module, rest) = resolve(modules, from, path)?;
    let Some(item) = rest.first() else { return Some(module) };
    for _ in 0..4 {
        let passed = uses(&modules[&module]).into_iter().filter(|(passed, _)| *passed);
        let mut passed = passed.flat_map(|(_, tree)| expand(&tree));
        match passed
            .find(|path| path.rsplit("::").next() == Some(item))
            .and_then(|path| resolve(modules, &module, &path))
        {
            Some((next, _)) if next != module => module = next,
            _ => break,
        }
    }
    Some(module)
}

/// Imports from an ancestor do not count: its types are there for its children.
#[test]
fn imports_between_files_form_no_cycle() {
    let modules = modules();
    let imports = |module: &String| -> BTreeSet<String> {
        let named = paths(&modules[module]).into_iter().filter_map(|path| source_of(&modules, module, &path));
        named.filter(|other| other != module && !module.starts_with(&format!("{other}::"))).collect()
    };
    let mut left: BTreeMap<String, BTreeSet<String>> =
        modules.keys().map(|module| (module.clone(), imports(module))).collect();
    assert!(left["fs"].contains("fs::union") && left["cli"].contains("store"), "the imports are not read: {left:#?}");
    // A module that imports no remaining module is in no cycle.
    loop {
        let free: Vec<String> =
            left.iter().filter(|(_, imports)| imports.is_empty()).map(|(module, _)| module.clone()).collect();
        if free.is_empty() {
            break;
        }
        left.retain(|module, _| !free.contains(module));
        left.values_mut().for_each(|imports| imports.retain(|module| !free.contains(module)));
    }
    // A module that no remaining module imports only leads to a cycle.
    while let Some(leads) = left.keys().find(|module| !left.values().any(|imports| imports.contains(*module))).cloned()
    {
        left.remove(&leads);
    }
    assert!(left.is_empty(), "files import each other in a circle: {left:#?}");
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
fn the_top_directory_has_only_the_allowed_entries() {
    for entry in fs::read_dir(top()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(TOP.contains(&name.as_str()), "{name} does not belong at the top of the project");
    }
}
