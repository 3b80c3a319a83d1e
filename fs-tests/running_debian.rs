//! Containers of the Debian image: package installation, moved and replaced trees, and the image committed from them.

use std::fs;

use super::support::chroot::APT;
use super::support::env::{TestEnv, run};
use super::support::tree::{Contents, diff, scan};
use super::support::{big_image, debs};

/// A store with the Debian image, under the name `debian`.
fn debian() -> TestEnv {
    let env = TestEnv::new();
    let layout = format!("oci:{}", big_image().join("oci").display());
    env.ok(["pull", "-q", &layout]);
    let id = env.ok(["images", "-q"]);
    env.ok(["tag", id.trim(), "debian:12"]);
    env
}

#[track_caller]
fn ok(env: &TestEnv, words: &[&str]) -> String {
    let output = run(&mut env.command(words));
    assert_eq!(output.code, 0, "{words:?}: {output:#?}");
    output.stdout
}

/// Installs packages in a container, commits an image, and compares the image with the container.
#[test]
fn packages_are_installed_and_committed() {
    let env = debian();
    let volume = format!("{}:/mnt:ro", debs().display());
    let install = format!("{APT} update && {APT} install -y git && git --version");
    let given = ["--name", "work", "-v", &volume, "--network", "none", "-e", "DEBIAN_FRONTEND=noninteractive"];
    let output = ok(&env, &[&["run"], &given[..], &["debian:12", "sh", "-c", &install]].concat());
    assert!(output.contains("git version"), "{output}");
    let diff_output = ok(&env, &["diff", "work"]);
    assert!(diff_output.lines().any(|line| line == "C /var/lib/dpkg/status"), "{diff_output}");
    ok(&env, &["commit", "-m", "with packages", "work", "work:1"]);
    assert!(ok(&env, &["run", "--rm", "work:1", "git", "--version"]).contains("git version"));
    ok(&env, &["run", "--name", "again", "work:1", "true"]);
    assert_eq!(ok(&env, &["diff", "again"]), "");
    // Compares the container's tree and the new image's, entry by entry.
    let (of_container, of_image) = (env.path("container"), env.path("image"));
    fs::create_dir(&of_container).unwrap();
    fs::create_dir(&of_image).unwrap();
    let upper = env
        .root()
        .join("containers")
        .join(ok(&env, &["ps", "-aq", "--no-trunc", "-f", "name=work"]).trim())
        .join("upper");
    ok(&env, &["mount", "--upper", upper.to_str().unwrap(), "debian:12", of_container.to_str().unwrap()]);
    ok(&env, &["mount", "work:1", of_image.to_str().unwrap()]);
    let (was, is) = (scan(&of_container, Contents::Hash), scan(&of_image, Contents::Hash));
    ok(&env, &["umount", of_container.to_str().unwrap()]);
    ok(&env, &["umount", of_image.to_str().unwrap()]);
    let mut different = diff(&was, &is);
    // A mountpoint, and empty: not a change of the container's.
    different.retain(|d| d.path != b"/etc/hosts");
    assert!(different.is_empty(), "{:#?}", &different[..different.len().min(10)]);
    ok(&env, &["rm", "work", "again"]);
}

#[test]
fn renamed_replaced_and_recreated_trees_are_committed_exactly() {
    let env = debian();
    let script = "set -e; mv /usr/share/perl5 /usr/share/papers; rm -r /usr/share/man; echo file > /usr/share/man; \
        rm -r /var/cache/apt; mkdir /var/cache/apt; touch /var/cache/apt/fresh; ln /etc/passwd /etc/passwd.too; \
        echo line >> /etc/passwd.too; mv /opt /srv/opt";
    ok(&env, &["run", "--name", "mix", "debian:12", "sh", "-c", script]);
    ok(&env, &["commit", "mix", "mix:1"]);
    let look = "find /usr/share/papers /usr/share/man /var/cache/apt /etc /srv -xdev | LC_ALL=C sort | \
        xargs -d '\\n' stat -c '%n %f %h %u %g %s %Y' | grep -v '/etc/hosts \\|/etc/hostname \\|/etc/resolv.conf \\|^/srv \\|/etc/mtab'; \
        cat /etc/passwd";
    ok(&env, &["create", "--name", "look", "mix:1", "sh", "-c", look]);
    let is = ok(&env, &["start", "-a", "look"]);
    ok(&env, &["run", "-d", "--name", "rest", "mix:1", "sleep", "1000"]);
    assert_eq!(ok(&env, &["exec", "rest", "sh", "-c", look]), is);
    assert!(is.contains("/usr/share/papers/") && is.ends_with("line\n"), "{is}");
    assert_eq!(ok(&env, &["diff", "rest"]), "");
    ok(&env, &["rm", "-f", "rest", "mix", "look"]);
}
