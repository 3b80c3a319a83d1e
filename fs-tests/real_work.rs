//! Everyday container work in a writable mount of the Debian image: apt, builds, git, SQLite, removal of trees.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::chroot::{APT, chroot};
use crate::support::env::{Mount, run};
use crate::support::tar::Tar;
use crate::support::writable::WritableUnion;
use crate::support::{cache, debs};

/// Runs a script in a chroot of the mount and requires success; returns its output.
#[track_caller]
fn run_in_chroot(mount: &Mount, script: &str) -> String {
    let output = run(&mut chroot(mount.path(), &debs(), script));
    assert_eq!(output.code, 0, "{script}\n{}{}", output.stdout, output.stderr);
    output.stdout
}

/// One test, since each step uses the result of the one before.
#[test]
fn software_is_installed_built_and_committed() {
    let union = WritableUnion::debian();
    let mount = union.mount();
    // The image lacks documentation of its packages: files missing before are not new faults.
    run_in_chroot(&mount, "dpkg --verify | sort >/root/before");
    run_in_chroot(&mount, &format!("{APT} update; {APT} install git"));
    let files: usize = run_in_chroot(&mount, "dpkg -L git | wc -l").trim().parse().unwrap();
    assert!(files > 500, "git has {files} files: no test of many");
    packages_are_intact(&mount);
    build_lua(&mount);
    commit_everything(&mount);
    union.unmount(mount);

    let mount = union.mount();
    packages_are_intact(&mount);
    run_in_chroot(
        &mount,
        "cd /srv/lua; git fsck --strict; test -z \"$(git status --porcelain)\"; src/lua -v; make -q linux || make linux",
    );
    run_in_chroot(&mount, &format!("{APT} remove git; ! command -v git; {APT} check"));
    union.unmount(mount);
    union.assert_lower_unchanged();
}

/// Requires that every file of every package exists and has its hash, except those missing from the image.
#[track_caller]
fn packages_are_intact(mount: &Mount) {
    run_in_chroot(mount, "dpkg --verify | sort >/root/after; test -z \"$(dpkg --audit)\"");
    let wrong = run_in_chroot(mount, "comm -13 /root/before /root/after");
    assert!(wrong.is_empty(), "{wrong}");
}

fn build_lua(mount: &Mount) {
    run_in_chroot(mount, "mkdir /srv/lua; tar -xf /mnt/lua.tar.gz -C /srv/lua --strip-components=1 --no-same-owner");
    run_in_chroot(mount, "cd /srv/lua; make -s -j2 linux");
    let output = run_in_chroot(mount, "/srv/lua/src/lua -e 'print(_VERSION, 6 * 7, #string.rep(\"x\", 1e6))'");
    assert_eq!(output.trim(), "Lua 5.4\t42\t1000000");
}

/// Commits two git repositories: the built tree, and many small files that the image has already.
fn commit_everything(mount: &Mount) {
    let identity = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a \
                    GIT_COMMITTER_EMAIL=a@example.org";
    run_in_chroot(
        mount,
        &format!("{identity}; cd /srv/lua; git init -q; git add -A; git commit -qm all; git fsck --strict"),
    );
    run_in_chroot(
        mount,
        &format!(
            "{identity}; cd /usr/include; git init -q; git add -A; git commit -qm all; git repack -adq; git fsck \
             --strict; test -z \"$(git status --porcelain)\"; test $(git ls-files | wc -l) -gt 5000"
        ),
    );
}

/// Creates a database, adds rows to it from several processes at once, or counts them.
const DATABASE: &str = r#"
import multiprocessing, sqlite3, sys
path, what, writers, rows = sys.argv[1], sys.argv[2], 4, 250
def connect():
    return sqlite3.connect(path, timeout=60, isolation_level=None)
def write(writer):
    db = connect()
    for row in range(rows):
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO t VALUES (?, ?, randomblob(2000))", (writer, row))
        db.execute("UPDATE counter SET n = n + 1")
        db.execute("COMMIT")
        if row % 50 == 0:
            db.execute("SELECT count(*) FROM t").fetchone()
if what == "make":
    db = connect()
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE t (writer, row, data)")
    db.execute("CREATE TABLE counter (n)")
    db.execute("INSERT INTO counter VALUES (0)")
elif what == "write":
    with multiprocessing.Pool(writers) as pool:
        pool.map(write, range(writers))
if what != "make":
    db = connect()
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("SELECT n FROM counter").fetchone() == (writers * rows,)
    assert db.execute("SELECT count(*), count(DISTINCT writer || '-' || row) FROM t").fetchone() == (writers * rows,) * 2
"#;

#[track_caller]
fn database(at: &Path, what: &str) {
    let output = run(Command::new("/usr/bin/python3").args(["-c", DATABASE]).arg(at).arg(what));
    assert_eq!(output.code, 0, "{what}: {output:#?}");
}

/// The database is in the image: it is copied up while one process after another opens and maps it.
#[test]
fn a_database_written_by_several_processes_has_every_row() {
    every_row_is_written(|union| union);
}

#[test]
fn a_database_has_every_row_although_the_server_is_killed() {
    every_row_is_written(WritableUnion::with_server_kills);
}

fn every_row_is_written(with: fn(WritableUnion) -> WritableUnion) {
    let scratch = tempfile::tempdir().unwrap();
    database(&scratch.path().join("db"), "make");
    let made = fs::read(scratch.path().join("db")).unwrap();
    let union = with(WritableUnion::with_layer(Tar::new().dir("var").file("var/db", made).finish()));
    let mount = union.mount();
    database(&mount.path().join("var/db"), "write");
    union.unmount(mount);
    let mount = union.mount();
    database(&mount.path().join("var/db"), "check");
    union.unmount(mount);
    union.assert_lower_unchanged();
}

/// Makes a PostgreSQL cluster in a directory, runs transactions of pgbench in it, and checks its pages, its indexes and
/// the sums that each transaction keeps equal; then again after a crash of PostgreSQL itself.
const POSTGRESQL: &str = r#"
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); data=$1/data
as() { setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"; }
sql() { as "$bin/psql" -h "$1" -qAtc "$2" postgres; }
mkdir "$data" "$1/socket"; chown postgres: "$data" "$1/socket"
as "$bin/initdb" -k -A trust "$data" >/dev/null
start() {
    as "$bin/pg_ctl" -s -w -D "$data" -l "$data/log" -o "-k $1/socket -c listen_addresses= -c max_wal_size=64MB" start
}
start "$1"
trap 'as "$bin/pg_ctl" -s -D "$data" -m immediate stop || true' EXIT
as "$bin/pgbench" -h "$1/socket" -iqs 5 postgres 2>/dev/null
as "$bin/pgbench" -h "$1/socket" -n -c 4 -j 2 -T "$2" postgres >"$1/result"
grep -q 'number of failed transactions: 0 ' "$1/result"
for _ in 1 2; do
    test 1 = "$(sql "$1/socket" 'SELECT count(DISTINCT sum) FROM (SELECT sum(abalance) FROM pgbench_accounts
        UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT sum(bbalance) FROM pgbench_branches
        UNION ALL SELECT sum(delta) FROM pgbench_history) s')"
    sql "$1/socket" 'CREATE EXTENSION IF NOT EXISTS amcheck'
    as "$bin/pg_amcheck" -h "$1/socket" --heapallindexed postgres
    as "$bin/pg_ctl" -s -D "$data" -m immediate stop
    start "$1"
done
as "$bin/pg_ctl" -s -w -D "$data" stop
trap - EXIT
as "$bin/pg_checksums" --check "$data" >/dev/null
"#;

#[test]
#[ignore = "long: scripts/soak runs it"]
fn postgresql_keeps_every_transaction_although_the_server_is_killed() {
    let union = WritableUnion::with_layer(Tar::new().dir("srv").finish()).with_server_kills();
    let mount = union.mount();
    let output = run(Command::new("bash").args(["-c", POSTGRESQL, "-"]).arg(mount.path()).arg("20"));
    assert_eq!(output.code, 0, "{output:#?}");
    let transactions = fs::read_to_string(mount.path().join("result")).unwrap();
    println!("{transactions}");
    union.unmount(mount);
}

#[test]
fn a_removed_tree_stays_removed() {
    let union = WritableUnion::debian();
    let mount = union.mount();
    assert!(mount.path().join("usr/bin/gcc").exists());
    let output = run(Command::new("rm").arg("-rf").arg(mount.path().join("usr")));
    assert_eq!(output.code, 0, "{output:#?}");
    is_without_usr(mount.path());
    union.unmount(mount);
    let mount = union.mount();
    is_without_usr(mount.path());
    // The directory that replaces the tree is empty: no name of the lower layers reappears.
    fs::create_dir(mount.path().join("usr")).unwrap();
    assert_eq!(fs::read_dir(mount.path().join("usr")).unwrap().count(), 0);
    union.unmount(mount);
    let mount = union.mount();
    assert_eq!(fs::read_dir(mount.path().join("usr")).unwrap().count(), 0);
    assert!(!mount.path().join("usr/bin").exists());
    union.unmount(mount);
    assert!(cache().join("debian/unpacked/rootfs/usr/bin").is_dir(), "the cache itself has lost files");
    union.assert_lower_unchanged();
}

#[track_caller]
fn is_without_usr(root: &Path) {
    assert!(fs::symlink_metadata(root.join("usr")).is_err());
    assert!(fs::read_dir(root).unwrap().all(|entry| entry.unwrap().file_name() != "usr"), "ls still lists it");
}
