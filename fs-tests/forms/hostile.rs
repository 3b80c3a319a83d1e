//! Malicious lower and upper directories: a union never reads or writes anything outside its layers.

use super::driver::{Driver, MountUser, Stack};
use super::language::{Listing, build, list_tree};
use super::{Failures, list_mounted_tree};
use crate::support::env::{TestEnv, run};

/// Layers, the bottom one first. `OUT` is a directory outside of all of them, `UP` enough of `..` to reach the host's
/// root.
const PLANTED: &[&[&str]] = &[
    &["d/a=1", "d->OUT"],
    &["d->OUT", "d/b=2"],
    &["d/a=1", "d->OUT", "d/b=2", "k=1"],
    &["d->OUT/secret", "d=,size-7,@.metacopy="],
    &["d->OUT", "n/,@.redirect=/d n/k=1"],
    &["d->OUT", "n/,@.redirect=d n/k=1"],
    &["d->OUT", "d/n/,@.redirect=/d/sub"],
    &["d->OUT", "k=1", "f=,size-7,@.metacopy=,@.redirect=/d/secret"],
    &["d/k->OUT/secret", "d/f=,size-7,@.metacopy=,@.redirect=k"],
    &["d/sub/x=1", "d->OUT", "d/sub/y=2", "n/,@.redirect=/d/sub"],
    &["k=1", "n/,@.redirect=OUT"],
    &["k=1", "n/,@.redirect=/UPOUT"],
    &["k=1", "n/,@.redirect=UPOUT"],
    &["k=1", "n/,@.redirect=.."],
    &["k=1 d/x=1", "d/n/,@.redirect=.."],
    &["k=1", "n/,@.redirect=/.."],
    &["k=1", "n/,@.redirect=/"],
    &["k=1", "n/,@.redirect=/."],
    &["k=1", "n/,@.redirect="],
    &["d/k=1", "n/,@.redirect=//d//"],
    &["d/k=1", "n/,@.redirect=d/k"],
    &["k=1", "f=,size-7,@.metacopy=,@.redirect=OUT/secret"],
    &["k=1", "f=,size-7,@.metacopy=,@.redirect=/UPOUT/secret"],
    &["k=1", "f=,size-7,@.metacopy=,@.redirect=.."],
    // Files that must not be opened, since opening them blocks or has side effects.
    &["p,fifo", "f=,size-7,@.metacopy=,@.redirect=/p"],
    &["p,fifo", "p=,size-7,@.metacopy="],
    &["c,char-1-5", "f=,size-7,@.metacopy=,@.redirect=/c"],
    // Redirect cycles.
    &["a/x=1 b/y=1", "a/,@.redirect=/b b/,@.redirect=/a", "a/,@.redirect=/b b/,@.redirect=/a"],
    &["a/x=1", "a/,@.redirect=/a/a a/a/,@.redirect=/a", "a/,@.redirect=/a/a"],
    &["f=1", "f=,size-1,@.metacopy=,@.redirect=/g g=,size-1,@.metacopy=,@.redirect=/f"],
    // Whiteouts with malformed names, and below symbolic links.
    &["d/a=1", "d/.wh...= .wh..= d/.wh.=", "k=1"],
    &["d/a=1", "d->OUT d2/.wh.x="],
    &["d->OUT", ".wh.d->OUT/secret"],
];

const OUTSIDE: &str = "secret=outside sub/secret=outside secret-dir/x=outside";
/// Each command may succeed or fail, but must change nothing outside. Visible symbolic links keep their targets.
const SCRIPT: &str = r#"cd "$1"; exec 2>/dev/null
for d in d n a f; do
    [ -L $d ] || { echo x >>$d; echo x >$d/new; mkdir $d/dir; rm -r $d/secret; chmod 0700 $d/sub; mv $d/secret-dir $d/moved; }
    mv $d $d.moved; rm -rf $d; mkdir $d; echo x >$d/secret
done; true"#;

fn attack(driver: Driver, user: MountUser, layers: &[&str], with_upper: bool) -> Result<(), String> {
    let (env, placeholders) = (TestEnv::new(), user.placeholders("user.containers.override_stat"));
    let out = env.path("out");
    build(&out, OUTSIDE, placeholders);
    let (outside, mut lower) = (out.display().to_string(), Vec::new());
    for (number, text) in layers.iter().enumerate() {
        lower.push(env.path(number.to_string()));
        build(&lower[number], &text.replace("UP", &"../".repeat(12)).replace("OUT", &outside), placeholders);
    }
    let before: Vec<Listing> = lower.iter().chain([&out]).map(|dir| list_tree(dir, true)).collect();
    let dirs: Vec<_> = lower.iter().chain([&out]).cloned().collect();
    let upper = with_upper.then(|| (lower.pop().unwrap(), env.path("work")));
    std::fs::create_dir(env.path("work")).unwrap();
    let mounted = driver.mount(user, &Stack { lower, upper: upper.clone() }, &env.path(""))?;
    let seen = list_mounted_tree(&mounted, false)?;
    let leaks = seen.iter().filter(|(path, line)| path.contains("secret") || line.contains("\"outside\""));
    let mut wrong: Vec<String> = leaks.map(|(path, line)| format!("seen: {path}: {line}")).collect();
    if upper.is_some() {
        run(mounted.program("sh").args(["-c", SCRIPT, "sh"]).arg(mounted.path()));
    }
    mounted.unmount()?;
    let changed = |(dir, before): (&std::path::PathBuf, &Listing)| {
        let own = upper.as_ref().is_some_and(|(upper, _)| upper == dir);
        (!own && list_tree(dir, true) != *before).then(|| format!("changed: {}", dir.display()))
    };
    wrong.extend(dirs.iter().zip(&before).filter_map(changed));
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn attack_all(driver: Driver) {
    let mut failures = Failures::default();
    for layers in PLANTED {
        for user in MountUser::ALL {
            for with_upper in [false, true] {
                let name = format!("{layers:?}: {driver:?}, {user:?}, upper {with_upper}");
                failures.add(&name, attack(driver, user, layers, with_upper));
            }
        }
    }
    failures.assert_none();
}

/// Kernel overlayfs passes the same test, so the test does not depend on plyfs.
#[test]
fn kernel_overlayfs_reaches_nothing_outside_its_layers() {
    attack_all(Driver::Kernel);
}

#[test]
fn plyfs_reaches_nothing_outside_its_layers() {
    attack_all(Driver::Plyfs);
}
