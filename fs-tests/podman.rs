//! podman and buildah with plyfs as `mount_program`, compared with Debian's fuse-overlayfs: outputs and trees must be
//! the same.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::support::env;
use super::support::killer::ServerKiller;
use super::support::nest::UpperFs;
use super::support::oci::Image;
use super::support::podman::{LIST_TREE, PodmanUser, Store, assert_same, compare, compare_on, is_kernel_overlayfs};
use super::support::registry::DockerRegistry;
use super::support::small;
use super::support::tar::{Entry, Tar};

/// Allowed differences where fuse-overlayfs is wrong: the beginning of the line, and why the other is right.
const ALLOWED_DIFFERENCES: &[(&str, &str)] = &[
    ("-/opt/ann dir 700 1000:1001 new", "a file's content in it was written, and nothing else of it changed"),
    ("+/opt/ann dir 700 1000:1001 1600000000.000", "as above"),
    ("-/opt/deep dir 755 5:6 new", "its owner was changed, which is no change of what is in it"),
    ("+/opt/deep dir 755 5:6 1600000000.000", "as above"),
    ("-/opt/refilled dir 700 0:0 new", "its mode was changed, and that of a file in it"),
    ("+/opt/refilled dir 700 0:0 1600000000.000", "as above"),
    ("-/srv/refilled/x/up symlink 777 0:0 new", "mv copied it, since a directory of the image cannot be renamed there"),
    ("+/srv/refilled/x/up symlink 777 0:0 1600000000.000", "as above"),
    ("-/opt/sticky/deep/x/up symlink", "as above, of whom it is in each container"),
    ("+/opt/sticky/deep/x/up symlink", "as above"),
    ("+D /opt/deep/x", "it shows what is deleted while podman compares: see `right`"),
    ("+C /opt/gone", "as above"),
    ("+D /opt/gone/again", "as above"),
    (
        "-/srv/three file 644 0:0 1600000000.000",
        "a third name of its file was removed, and it is no less what the second is",
    ),
    ("+/srv/three file 644 0:0 1600000000.000 size=4 sha256=2c8b08da5ce60398 is=/opt/links/two", "as above"),
];

/// The programs of the image, besides those of [`small::layer`].
const APPLETS: &str = "chgrp chmod cmp cp cut dd expr find grep head mkfifo mknod mv od readlink rm rmdir \
     sed seq sha256sum sort tail tar test touch tr truncate wc xargs";

/// The bottom layer: the programs' directories, and a tree with every kind of entry that a layer can hold.
fn bottom() -> Tar {
    let mut tar = small::layer();
    for applet in APPLETS.split(' ').filter(|name| !small::APPLETS.contains(name)) {
        tar = tar.symlink(format!("bin/{applet}"), "busybox");
    }
    for dir in ["opt", "opt/data", "opt/deep", "opt/deep/x", "opt/deep/x/y", "opt/gone", "opt/gone/sub", "opt/opaque"] {
        tar = tar.dir(dir);
    }
    for name in ["a", "b", "c", "d", "e"] {
        tar = tar.file(format!("opt/data/{name}"), format!("{name} below\n"));
    }
    let tar = tar
        .file("opt/deep/x/y/z", "deep\n")
        .symlink("opt/deep/x/up", "../..")
        .file("opt/gone/sub/file", "gone\n")
        .file("opt/opaque/hidden", "hidden\n")
        .dir("opt/refilled")
        .file("opt/refilled/old", "old\n")
        .file("opt/becomes-dir", "file\n")
        .dir("opt/becomes-link")
        .file("opt/becomes-link/file", "file\n")
        .file("opt/big", vec![7; 300_000]);
    let tar = tar
        .add(Entry::file("opt/setuid", "#!/bin/sh\nid -u\n").mode(0o4755))
        .add(Entry::file("opt/setgid", "x").mode(0o2711).owner(1000, 1001))
        .add(Entry::dir("opt/sticky").mode(0o1777))
        .add(Entry::dir("opt/ann").mode(0o700).owner(1000, 1001))
        .add(Entry::file("opt/ann/own", "ann's\n").mode(0o600).owner(1000, 1001))
        .add(Entry::file("opt/attributes", "x").xattr("user.one", b"1").xattr("user.nul", b"a\0b"))
        .add(Entry::fifo("opt/fifo"));
    odd_names(linked(tar))
}

/// Files with several hard links, in one directory and across two.
fn linked(tar: Tar) -> Tar {
    tar.dir("opt/links")
        .dir("srv")
        .file("opt/links/one", "one\n")
        .hard_link("opt/links/two", "opt/links/one")
        .hard_link("srv/three", "opt/links/one")
        .file("opt/links/other", "other\n")
        .hard_link("srv/another", "opt/links/other")
}

fn odd_names(mut tar: Tar) -> Tar {
    tar = tar.dir("opt/odd");
    let names: [&[u8]; 11] = [
        b"a b",
        b"-x",
        b"back\\slash",
        b"colon:comma,quote\"'",
        b"line\nbreak",
        b"tab\tbed",
        "\u{fc}ml\u{e4}ut".as_bytes(),
        b"raw\xff\xfe",
        b"...",
        b"$(true)`;&*?",
        b".hidden",
    ];
    for name in names {
        tar = tar.file([b"opt/odd/".as_slice(), name].concat(), name);
    }
    // In a directory of its own, which no script moves: fuse-overlayfs cannot create a name of this length.
    tar.dir("opt/long").file([b"opt/long/".as_slice(), &[b'l'; 255]].concat(), "long\n")
}

/// The second layer: replaces and deletes entries of the bottom layer.
fn middle() -> Tar {
    Tar::new()
        .dir("opt")
        .dir("opt/data")
        .whiteout("opt/data/e")
        .add(Entry::file("opt/data/d", "d above\n").mode(0o640))
        .whiteout("opt/gone")
        .dir("opt/opaque")
        .opaque("opt/opaque")
        .file("opt/opaque/shown", "shown\n")
        .dir("opt/refilled")
        .whiteout("opt/refilled/old")
        .file("opt/refilled/new", "new\n")
        .dir("opt/becomes-dir")
        .file("opt/becomes-dir/file", "file\n")
        .symlink("opt/becomes-link", "data")
        .whiteout("srv/another")
}

fn top() -> Tar {
    Tar::new()
        .dir("opt/links")
        .file("opt/links/late", "late\n")
        .hard_link("srv/late", "opt/links/late")
        .dir("opt/gone")
        .file("opt/gone/again", "again\n")
        .whiteout("opt/opaque/shown")
}

fn image() -> Image {
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/opt" });
    let image = Image::new().layer(bottom().finish()).layer(middle().finish()).layer(top().finish());
    image.docker().edit_config(move |c| c["config"] = config.clone())
}

/// Loads the image as `box:1`.
fn load(store: &Store) {
    let file = store.env.path("box.tar");
    image().write_docker_archive(&file, &["localhost/box:1"]);
    assert_eq!(store.ok(&["load", "-q", "-i", file.to_str().unwrap()]), "Loaded image: localhost/box:1\n");
}

/// A shell script that prints the output and exit code of each command after `try`.
fn shell(script: &str) -> String {
    let list = "list() { find \"$@\" | sort; }";
    let shown = "try() { echo \"+ $*\"; \"$@\" 2>&1; echo \"= $?\"; }";
    format!("{list}\n{shown}\n{script}")
}

/// Runs a shell script in a new container.
fn run(store: &Store, options: &[&str], script: &str) {
    let script = shell(script);
    let words = ["sh", "-c", &script];
    store.podman(&[&["run", "--network=none"], options, &["box:1"], &words[..]].concat());
}

/// Starts a container that waits in the background.
fn background(store: &Store, name: &str, options: &[&str]) {
    let fixed = ["run", "-d", "--network=none", "--name", name];
    store.ok(&[&fixed[..], options, &["box:1", "sleep", "4741"]].concat());
}

fn record_tree(store: &Store, kind: &[&str], name: &str) {
    let tree = store.tree(kind, name);
    assert!(tree.lines().count() > 80, "{tree}");
    assert!(!tree.contains("FAULT"), "{tree}");
    store.record(&format!("the tree of {name}"), &tree);
}

/// Changes contents and attributes of the image's files, and of new ones.
const FILES: &str = r#"
try cat data/a data/d opaque/shown refilled/new becomes-dir/file becomes-link/a
try readlink becomes-link deep/x/up
try cat data/e
echo more >> data/a; try cat data/a
try truncate -s 3 data/b; try cat data/b
try dd if=/dev/zero of=big bs=1 seek=70000 count=3 conv=notrunc status=none; try sha256sum big
try chmod 4750 data/c; try stat -c '%a %u %g %s' data/c
try chown 1000:1001 data/c; try stat -c '%a %u %g %s' data/c
try chmod 700 deep/x; try chown 5:6 deep; try stat -c '%a %u %g' deep deep/x
echo new > data/new; try chmod 600 data/new; try touch -d '2001-02-03 04:05:06' data/new; try stat -c '%a %Y' data/new
try touch -d '2002-02-03 04:05:06' data/d; try stat -c %Y data/d
try cp /bin/busybox data/program; try data/program true
exec 3< data/a; rm data/a; cat <&3; exec 3<&-
try cat data/a
mkfifo pipe; (echo through > pipe) & try cat pipe
(echo through > fifo) & try cat fifo
try sh -c 'for n in $(seq 200); do echo $n > sticky/$n; done; ls sticky | wc -l; rm sticky/1*; ls sticky | wc -l'
try dd if=/dev/zero of=data/large bs=65536 count=40 status=none; try sha256sum data/large
try sh -c 'echo 1 > ann/own; cat ann/own; stat -c "%u %a" ann/own'
grep ' / ' /proc/mounts | grep -c nosuid
try mknod sticky/null c 1 3
mknod sticky/zero c 0 0 2>/dev/null; echo "no whiteout: $?"
try sh -c 'wc -c odd/*'
try rm 'odd/a b'; try mv odd/-x odd/--y; try ls -1a odd
"#;

/// Changes names: renames, directories of the image that are moved or removed, links.
const NAMES: &str = r#"
try mv deep moved; try list moved; try cat moved/x/y/z; try ls deep
try mkdir deep; try list deep; echo again > deep/file
try mv moved/x refilled; try mv refilled /srv/refilled; try list /srv/refilled
try mkdir -p fresh/one; try mv fresh renamed; try mv renamed/one renamed/two; try mv renamed data/in; try list data
try mv data/b data/in/two/b; try mv data/c data/d; try cat data/d
try rmdir data; try rm -r opaque; try mkdir opaque; try ls -1a opaque
try rm -rf gone; try ls gone; echo file > gone; try cat gone; try rm gone; try mkdir gone; try ls gone
try mv odd odd2; try mv odd2 odd; try list odd -name '[a-z]*'
try ln data/in/two/b hard; echo both >> hard; try cat data/in/two/b; try stat -c %h hard
try ln -s /nowhere soft; try ln -s data/d soft2; try cat soft2; try cat soft; try mv soft2 deep/soft2; try readlink deep/soft2
try ln soft deep/soft; try readlink deep/soft
try ln data hard-dir; try mv data data/in/data; try mkdir data; try rmdir nowhere; try mv nowhere x
try ls -1A /; try ls -1aR .
"#;

/// Changes that fuse-overlayfs commits correctly.
const COMMITTED: &str = r#"
echo more >> data/a; rm data/b; chmod 4711 setuid; chown 1000:1001 data/c; chmod 700 ann/own
mkdir new; ln data/c new/c; ln -s nowhere new/soft; mkfifo new/fifo; rm refilled/new; mv odd/-x odd/--y
rm -r deep/x; mkdir deep/x; echo again > deep/x/file; mv becomes-dir new/dir; rm -r gone; rm becomes-link
echo a > 'odd/...'; rm 'odd/raw'*; touch -d '2001-02-03 04:05:06' sticky/old
"#;

/// Writes to files of the image with several hard links, through one of them.
const LINKS: &str = r#"
try ln links/late links/later; echo x >> links/later; try cat /srv/late links/late links/later
try rm links/one; try cat links/two /srv/three
"#;

fn images(store: &Store, registry: &DockerRegistry) {
    load(store);
    let name = format!("{}/box:1", registry.host);
    store.podman(&["pull", "-q", "--tls-verify=false", &name]);
    store.podman(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"]);
    record_tree(store, &["image"], "box:1");
    assert_same("loaded and pulled", &store.tree(&["image"], "box:1"), &store.tree(&["image"], &name));
    store.podman(&["rmi", "box:1"]);
    store.podman(&["rmi", &name]);
    store.podman(&["images", "-a"]);
}

/// Compares the output of scripts in containers, and the trees they leave. Kernel overlayfs breaks hard links of a file
/// that is written.
fn scripts(store: &Store) {
    load(store);
    let all = [("files", FILES), ("names", NAMES), ("links", LINKS)];
    for (name, script) in all.into_iter().filter(|(name, _)| *name != "links" || !is_kernel_overlayfs()) {
        run(store, &["--name", name], script);
        record_tree(store, &[], name);
        record_diff(store, name);
    }
}

/// Records the output of `podman diff`, sorted by path.
fn record_diff(store: &Store, name: &str) {
    if is_kernel_overlayfs() {
        return;
    }
    let output = store.ok(&["diff", name]);
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    store.record(&format!("diff {name}"), &lines.join("\n"));
}

fn copies(store: &Store) {
    load(store);
    background(store, "box", &[]);
    let make = "mkdir -p in/sub; echo host >in/file; ln -s file in/sub/link; chmod 751 in/sub";
    store.run_on_host(make, &[]);
    for state in ["running", "stopped"] {
        let out = store.env.path(format!("work/{state}"));
        store.podman(&["cp", "in", &format!("box:/opt/{state}")]);
        store.podman(&["cp", "in/file", "box:/opt/data/a"]);
        store.podman(&["cp", "in/.", "box:/opt/refilled"]);
        store.podman(&["cp", "box:/opt", out.to_str().unwrap()]);
        store.record(&format!("copied out, {state}"), &store.list_host_tree(&out));
        store.podman(&["cp", "box:/opt/nowhere", "x"]);
        if state == "running" {
            let made = "echo kept > kept; mv deep /srv; rm -r data/b; ls data /srv; cat data/a";
            store.podman(&["exec", "box", "sh", "-c", made]);
            store.podman(&["exec", "-u", "ann", "-w", "/tmp", "box", "sh", "-c", "id -u; touch x; touch /opt/x"]);
            store.podman(&["stop", "-t", "0", "box"]);
        }
    }
    record_diff(store, "box");
    store.podman(&["start", "box"]);
    store.podman(&["exec", "box", "sh", "-c", "cat kept; ls . data /srv refilled; echo twice >> kept"]);
    store.podman(&["restart", "-t", "0", "box"]);
    store.podman(&["exec", "box", "cat", "kept"]);
    store.podman(&["rm", "-f", "-t", "0", "box"]);
}

/// Without tmpfs over `/tmp` and others, for which runc wants the host's `/tmp` to be writable by all.
const READ_ONLY: &[&str] = &["--read-only", "--read-only-tmpfs=false"];

/// Two containers of one image at once see their own changes only; some containers are read-only.
fn side_by_side(store: &Store) {
    load(store);
    background(store, "one", &[]);
    background(store, "two", &[]);
    for name in ["one", "two"] {
        let script = format!("echo {name} > data/a; rm data/b; mkdir {name}; mv deep {name}; ls . data {name}");
        store.podman(&["exec", name, "sh", "-c", &script]);
    }
    for name in ["one", "two"] {
        assert_eq!(store.podman(&["exec", name, "cat", "data/a"]).stdout, format!("{name}\n"));
        store.podman(&["exec", name, "sh", "-c", "find . | sort"]);
    }
    run(store, &["--rm"], "try ls; try cat data/a data/b");
    run(store, &[&["--rm"], READ_ONLY].concat(), "try touch data/x; try rm data/a; try touch /tmp/x; try cat data/a");
    run(store, &[&["--rm", "-v", "/opt/data"], READ_ONLY].concat(), "try touch data/x; try touch x; try ls data");
    record_tree(store, &["image"], "box:1");
}

/// Containers with ID mappings, which podman passes to the mount program.
fn id_mapped_containers(store: &Store) {
    load(store);
    let script = "try id -u; try id -g; try stat -c '%u %g %a %n' . data ann setgid sticky setuid; try cat ann/own; \
                  try touch sticky/mine data/mine; try stat -c '%u %g' sticky/mine; try chown 3:4 sticky/mine; \
                  try stat -c '%u %g' sticky/mine; try mv deep sticky; try rm sticky/mine; try chmod 700 data";
    if is_kernel_overlayfs() {
        return;
    }
    let one_to_one = ["--uidmap=0:100:3000", "--gidmap=0:100:3000"];
    for options in [&["--userns=keep-id"][..], &["--userns=keep-id", "--user=0"], &["--userns=auto"], &one_to_one] {
        run(store, options, script);
        let id = store.ok(&["ps", "-l", "-q"]);
        store.record(&format!("the tree with {options:?}"), &store.tree(&[], id.trim()));
    }
}

/// Changes files from outside the container, then requires that the committed image has what the container has.
fn committed(store: &Store) {
    load(store);
    run(store, &["--name", "box"], COMMITTED);
    let script = "at=$(podman mount box); setfattr -n user.two -v 2 $at/opt/attributes; setfattr -x user.one \
                  $at/opt/attributes; setfattr -n user.dir -v x $at/srv; getfattr -d $at/opt/attributes >/dev/null; \
                  setcap cap_net_raw+ep $at/opt/setuid; podman umount box";
    store.run_on_host(script, &[]);
    store.ok(&["commit", "-q", "box", "new:1"]);
    // podman mounts files of its own over these, and commits neither them nor the files they hide.
    let own = |line: &&str| !["/etc", "/run", "/dev"].iter().any(|at| line.starts_with(at)) && !line.starts_with("/ ");
    let (container, image) = (store.tree(&[], "box"), store.tree(&["image"], "new:1"));
    let pick = |tree: &str| tree.lines().filter(own).map(str::to_owned).collect::<Vec<_>>().join("\n");
    assert_same("the container and its committed image", &pick(&container), &pick(&image));
    store.record("the tree committed", &image);
    store.podman(&["run", "--rm", "--network=none", "new:1", "sh", "-c", "find . | sort"]);
    // One more layer, then one that records deletions.
    store.ok(&["run", "--name=next", "--network=none", "new:1", "sh", "-c", "rm -r deep/x; mkdir deep/x; rm -r new"]);
    record_diff(store, "next");
    store.ok(&["commit", "-q", "next", "new:2"]);
    record_tree(store, &["image"], "new:2");
    store.podman(&["rmi", "new:1"]);
    store.podman(&["images", "-q"]);
}

/// Checks behaviour that fuse-overlayfs gets wrong, against fixed expectations instead of a comparison.
fn known_peer_bugs(store: &Store) {
    if store.is_peer() {
        return;
    }
    load(store);
    let assert_output = |script: &str, wanted: &str| {
        let output = store.ok(&["run", "--rm", "--network=none", "box:1", "sh", "-c", script]);
        assert_eq!(output, wanted, "{script}");
    };
    // fuse-overlayfs changes the owner of a fifo and reports a failure.
    assert_output("chown 1:2 fifo && stat -c '%u %g %F' fifo", "1 2 fifo\n");
    // fuse-overlayfs needs four bytes of each name for itself.
    assert_output("cd long; for n in *; do mv $n a; mv a $n; cp $n ${n%l}m; done; ls | wc -l", "2\n");
    // fuse-overlayfs counts the names that were looked up, and lists its root without a name for `..`.
    assert_output("stat -c %h links/one links/two links/late /srv/three", "3\n3\n2\n3\n");
    assert_output("ls -a / | head -2", ".\n..\n");
    // fuse-overlayfs gives a directory a new time when its owner or a file in it changes.
    let times = "chown 5:6 deep; echo x > ann/own; chmod 600 ann/own; stat -c %Y deep ann";
    assert_output(times, "1600000000\n1600000000\n");
    // After a lookup of a deleted name in a directory, fuse-overlayfs shows other deleted names there again; so podman,
    // which compares both trees, commits them again.
    store.ok(&["run", "--name", "reborn", "--network=none", "box:1", "sh", "-c", "rm -r deep data; mkdir deep"]);
    store.ok(&["commit", "-q", "reborn", "new:1"]);
    assert_eq!(store.ok(&["run", "--rm", "--network=none", "new:1", "find", "deep"]), "deep\n");
}

const CONTAINERFILE: &str = r#"
FROM box:1 AS one
COPY in /opt/data/
COPY --chown=1000:1001 in/file /opt/ann/copied
RUN rm -rf deep && mkdir deep && echo again > deep/file
RUN rm -rf opaque gone data/sub && mkdir -p opaque/sub
RUN chmod 4711 setuid && chown 1000:1001 data/c && chmod -R go-rwx refilled
RUN mv data moved && ln moved/a hard && touch -d '2001-02-03 04:05:06' hard
RUN ln -s moved data && cat data/file moved/a
FROM box:1
COPY --from=one /opt/moved /opt/from
COPY --from=one /opt/deep /opt/deep
RUN rm -r from/sub; find from deep | sort
"#;

fn built(store: &Store) {
    load(store);
    let from = store.env.path("work");
    store.run_on_host(
        "mkdir -p in/sub; echo host >in/file; echo host >in/a; echo host >in/sub/file; echo \"$1\" >File",
        &[CONTAINERFILE],
    );
    let fixed = ["build", "-q", "--network=none", "-f", "File"];
    for (name, more) in [("one", &["--target=one"][..]), ("all", &["--layers=false"])] {
        store.ok(&[&fixed[..], more, &["-t", name, from.to_str().unwrap()]].concat());
        record_tree(store, &["image"], name);
    }
    store.podman(&["history", "--format", "{{.CreatedBy}}", "one"]);
    // Nothing has changed: each step is cached.
    let again = store.ok(&["build", "--network=none", "-f", "File", "--target=one", from.to_str().unwrap()]);
    assert_eq!(again.matches("Using cache").count(), 7, "{again}");
}

/// Runs buildah's own commands.
fn buildah(store: &Store) {
    load(store);
    store.buildah(&["from", "--name", "work", "localhost/box:1"]);
    let script = "rm -r deep/x; mkdir deep/x; mv data moved; echo x >> moved/a; chmod 4700 setuid; ls . moved";
    let script = format!("cd /opt; {script}");
    store.buildah(&["run", "--network=host", "work", "--", "sh", "-c", &script]);
    fs::write(store.env.path("tmp/file"), "host\n").unwrap();
    let file = store.env.path("tmp/file").display().to_string();
    store.buildah(&["copy", "-q", "--chown", "1000:1001", "--chmod", "640", "work", &file, "/opt/copied"]);
    store.buildah(&["copy", "-q", "--from", "localhost/box:1", "work", "/opt/refilled", "/opt/moved"]);
    store.buildah(&["config", "--env", "A=b", "work"]);
    let list = "at=$(buildah mount work) && python3 -c \"$1\" \"$at\" && buildah umount work >/dev/null";
    store.record("the tree of buildah's container", &store.run_on_host_via("buildah", list, &[LIST_TREE]));
    store.buildah(&["commit", "-q", "work", "made:1"]);
    store.buildah(&["rm", "work"]);
    record_tree(store, &["image"], "made:1");
    store.podman(&["run", "--rm", "--network=none", "made:1", "sh", "-c", "echo $A; ls /opt /opt/moved"]);
}

/// Starts containers that write much, all at once.
fn concurrent_containers(store: &Store) {
    load(store);
    let names = ["a", "b", "c", "d", "e", "f"];
    let script = shell(NAMES);
    let commands = names
        .map(|name| store.command("podman", &["run", "--network=none", "--name", name, "box:1", "sh", "-c", &script]));
    let done = std::thread::scope(|scope| {
        let started = commands.map(|mut command| scope.spawn(move || env::run(&mut command)));
        started.map(|one| one.join().unwrap())
    });
    let trees = names.map(|name| store.tree(&[], name));
    for at in 0..names.len() {
        assert_same("the output of two containers", &done[0].stdout, &done[at].stdout);
        assert_same("the trees of two containers", &trees[0], &trees[at]);
    }
    store.record("all at once", &format!("{}\n{}", done[0].stdout, trees[0]));
}

/// Compares image commands, with a registry that has the image.
fn images_of(user: PodmanUser) {
    let registry = DockerRegistry::start(None, None);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("box.tar");
    image().write_docker_archive(&file, &["localhost/box:1"]);
    registry.fill(&format!("docker-archive:{}", file.display()), "box:1", &[]);
    compare(user, ALLOWED_DIFFERENCES, |store| images(store, &registry));
}

#[test]
fn images_are_loaded_pulled_and_removed() {
    images_of(PodmanUser::Root);
}

#[test]
fn containers_see_their_changes() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, scripts);
}

#[test]
fn files_are_copied_in_and_out() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, copies);
}

#[test]
fn a_committed_image_has_the_containers_tree() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, committed);
}

#[test]
fn plyfs_is_right_where_fuse_overlayfs_is_wrong() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, known_peer_bugs);
}

/// As in a container whose root is an overlay.
#[test]
fn a_store_on_kernel_overlayfs_works_like_any_other() {
    compare_on(UpperFs::Overlayfs, PodmanUser::Root, ALLOWED_DIFFERENCES, scripts);
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn stores_on_an_overlay_work_like_any_other() {
    for upper_fs in [UpperFs::Overlayfs, UpperFs::Plyfs("")] {
        for scenario in [scripts, committed, built, buildah] {
            compare_on(upper_fs, PodmanUser::Root, ALLOWED_DIFFERENCES, scenario);
        }
    }
}

#[test]
fn a_plain_users_containers_have_id_mappings() {
    compare(PodmanUser::User("list", 38), ALLOWED_DIFFERENCES, id_mapped_containers);
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn concurrent_containers_of_an_image_see_only_their_own_changes() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, side_by_side);
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn containers_can_start_at_the_same_time() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, concurrent_containers);
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn images_are_built() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, built);
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn images_are_built_although_the_servers_are_killed() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, |store| {
        let killer =
            (!store.is_peer()).then(|| ServerKiller::start_in(&store.env.path(""), 3, Duration::from_millis(175)));
        built(store);
        assert!(killer.is_none_or(|killer| killer.kills() > 0), "no server was killed");
    });
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn buildah_builds_images() {
    compare(PodmanUser::Root, ALLOWED_DIFFERENCES, buildah);
}

/// One test, because each part uses the same subordinate IDs of the same user.
#[test]
#[ignore = "long: scripts/soak runs it"]
fn everything_works_as_a_plain_user() {
    let user = PodmanUser::User("uucp", 10);
    images_of(user);
    for scenario in [scripts, copies, committed, side_by_side, concurrent_containers, built] {
        compare(user, ALLOWED_DIFFERENCES, scenario);
    }
}

#[test]
#[ignore = "long: scripts/soak runs it"]
fn buildah_builds_images_as_a_plain_user() {
    compare(PodmanUser::User("irc", 39), ALLOWED_DIFFERENCES, buildah);
}
