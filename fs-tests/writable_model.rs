//! Property test of writable mounts: random operations on a mount and on a model of a POSIX tree; any difference fails.
//!
//! The model itself is checked against the file system that the tests run on and against kernel overlayfs. A failing
//! run prints its seed and the shortest list of operations that still fails, to be kept here as a test.
//!
//! ```text
//! PLYFS_MODEL_SEED=7 PLYFS_MODEL_OPS=5000 cargo test --test fs writable_model    # one run
//! PLYFS_MODEL_RUNS=200 cargo test --test fs writable_model                       # many
//! ```

use std::time::Duration;

use crate::model::by_inode::InodeHarness;
use crate::model::check::{Checker, Checks};
use crate::model::directories::{LowerDirsFs, in_process, in_process_with_refused};
use crate::model::engines::AlternatingFs;
use crate::model::generate::{Menu, generate};
use crate::model::harness::Harness;
use crate::model::image::image;
use crate::model::in_memory::InMemory;
use crate::model::mounted::{KernelUpperFs, PlyfsFs, pull_image};
use crate::model::op::{Op, Op::*, Outcome, Replace, Replace::*};
use crate::model::place::{OverlayFs, PlainFs, View};
use crate::model::run::{Effort, by_path, compare, execute, replay, search, shrink, soak};
use crate::model::state::{Model, umask};
use crate::model::union::Union;
use crate::support::env::TestEnv;
use crate::support::faulty::RefusedCalls;
use crate::support::killer::Disturbance;
use crate::support::nest::UpperFs;
use crate::support::tree::{Contents, Tree, scan};
use plyfs::upper::User;

/// The longest time between two deaths of a server.
const KILL_INTERVAL: Duration = Duration::from_millis(40);

#[test]
fn the_model_is_right_about_a_plain_directory() {
    soak("plain", Effort { runs: 12, ops: 1500 }, PlainFs::MENU, &|| by_path(PlainFs::new()));
}

#[test]
fn the_model_is_right_about_kernel_overlayfs() {
    soak("overlayfs", Effort { runs: 6, ops: 1000 }, OverlayFs::MENU, &|| by_path(OverlayFs::new(false)));
}

#[test]
fn the_model_is_right_about_kernel_overlayfs_that_copies_attributes_alone() {
    soak("metacopy", Effort { runs: 6, ops: 1000 }, OverlayFs::MENU, &|| by_path(OverlayFs::new(true)));
}

#[test]
fn a_writable_mount_is_a_posix_tree() {
    soak("plyfs", Effort { runs: 8, ops: 700 }, PlyfsFs::MENU, &|| by_path(PlyfsFs::new(&[])));
}

#[test]
fn a_writable_mount_is_a_posix_tree_while_its_server_is_killed() {
    soak("plyfs, servers killed", Effort { runs: 5, ops: 2500 }, PlyfsFs::MENU, &|| {
        by_path(PlyfsFs::new(&[]).disturbed_by(Disturbance::kills(KILL_INTERVAL)))
    });
}

#[test]
fn a_mount_of_directories_is_a_posix_tree_while_its_server_is_killed() {
    for count in [1, 10] {
        soak("directories, servers killed", Effort { runs: 2, ops: 2000 }, LowerDirsFs::MENU, &|| {
            by_path(LowerDirsFs::new(count).disturbed_by(Disturbance::kills(KILL_INTERVAL)))
        });
    }
}

/// What the kernel has forgotten is unloaded, and loaded again when it is needed.
#[test]
fn a_writable_mount_is_a_posix_tree_while_the_kernel_forgets_inodes() {
    for disturbance in [Disturbance::forgets, || Disturbance::kills_and_forgets(KILL_INTERVAL)] {
        soak("plyfs, inodes forgotten", Effort { runs: 3, ops: 1000 }, PlyfsFs::MENU, &|| {
            by_path(PlyfsFs::new(&[]).disturbed_by(disturbance()))
        });
        soak("directories, inodes forgotten", Effort { runs: 2, ops: 700 }, LowerDirsFs::MENU, &|| {
            by_path(LowerDirsFs::new(3).disturbed_by(disturbance()))
        });
    }
}

/// Runs the same operations on both and compares each result.
#[test]
fn a_writable_mount_answers_as_a_plain_directory_does() {
    let menu = Menu { optional: false, ..PlyfsFs::MENU };
    compare("plain and plyfs", Effort { runs: 3, ops: 700 }, menu, &|| by_path(PlainFs::new()), &|| {
        by_path(PlyfsFs::new(&[]))
    });
}

#[test]
fn a_union_without_a_kernel_is_a_posix_tree() {
    let fresh = || -> Box<dyn Harness> { Box::new(InodeHarness::new(Union::new(User::own()), umask(), Checks::ALL)) };
    soak("union", Effort { runs: 20, ops: 1000 }, PlyfsFs::MENU, &fresh);
}

/// On kernel overlayfs, or on another mount of plyfs, whiteouts are files with an attribute.
#[test]
fn a_union_without_whiteout_devices_is_a_posix_tree() {
    for user in [User::own(), User { privileged: false, uid: 4321, gid: 4321 }] {
        soak("nested union", Effort { runs: 8, ops: 1000 }, PlyfsFs::MENU, &|| {
            Box::new(InodeHarness::new(Union::with_refused(user, RefusedCalls::Devices), umask(), Checks::ALL))
        });
        let directories = || in_process_with_refused(3, user, RefusedCalls::Devices);
        soak("nested directories", Effort { runs: 6, ops: 1000 }, LowerDirsFs::MENU, &directories);
    }
}

/// Owners, modes and file types that a plain user cannot set are kept in attributes; here for all files, since the
/// image's owner is another user.
#[test]
fn a_plain_users_union_is_a_posix_tree() {
    let user = User { privileged: false, uid: 4321, gid: 4321 };
    let fresh = || -> Box<dyn Harness> { Box::new(InodeHarness::new(Union::new(user), umask(), Checks::ALL)) };
    soak("plain user", Effort { runs: 12, ops: 1000 }, PlyfsFs::MENU, &fresh);
}

#[test]
fn directories_without_a_kernel_are_a_posix_tree() {
    for (count, effort) in [(1, Effort { runs: 10, ops: 1000 }), (10, Effort { runs: 10, ops: 1000 })] {
        soak("directories", effort, LowerDirsFs::MENU, &|| in_process(count, User::own()));
    }
}

#[test]
fn a_plain_users_directories_are_a_posix_tree() {
    let user = User { privileged: false, uid: 4321, gid: 4321 };
    soak("a plain user's directories", Effort { runs: 6, ops: 1000 }, LowerDirsFs::MENU, &|| in_process(3, user));
}

#[test]
fn a_mount_of_a_directory_is_a_posix_tree() {
    soak("one directory", Effort { runs: 3, ops: 700 }, LowerDirsFs::MENU, &|| by_path(LowerDirsFs::new(1)));
}

#[test]
fn a_mount_of_ten_directories_is_a_posix_tree() {
    soak("ten directories", Effort { runs: 3, ops: 700 }, LowerDirsFs::MENU, &|| by_path(LowerDirsFs::new(10)));
}

#[test]
fn a_mount_with_the_most_portable_forms_is_a_posix_tree() {
    soak("common forms", Effort { runs: 2, ops: 700 }, LowerDirsFs::MENU, &|| by_path(LowerDirsFs::in_common_forms()));
}

/// As in a container whose root is an overlay: whiteouts cannot be devices there.
#[test]
fn a_mount_nested_in_kernel_overlayfs_is_a_posix_tree() {
    let image = || by_path(PlyfsFs::with_upper_on(UpperFs::Overlayfs, &[]));
    soak("image on overlayfs", Effort { runs: 3, ops: 700 }, PlyfsFs::MENU, &image);
    let directories = || by_path(LowerDirsFs::with_upper_on(UpperFs::Overlayfs, 3));
    soak("directories on overlayfs", Effort { runs: 3, ops: 700 }, LowerDirsFs::MENU, &directories);
}

#[test]
fn a_mount_nested_in_a_mount_is_a_posix_tree() {
    let image = || by_path(PlyfsFs::with_upper_on(UpperFs::Plyfs(""), &[]));
    soak("image on plyfs", Effort { runs: 2, ops: 700 }, PlyfsFs::MENU, &image);
    let directories = || by_path(LowerDirsFs::with_upper_on(UpperFs::Plyfs(""), 3));
    soak("directories on plyfs", Effort { runs: 2, ops: 700 }, LowerDirsFs::MENU, &directories);
}

/// Runs the same operations on both and compares each result.
#[test]
fn a_mount_of_directories_answers_as_a_plain_directory_does() {
    let menu = Menu { optional: false, ..LowerDirsFs::MENU };
    for count in [1, 10] {
        compare("plain and directories", Effort { runs: 1, ops: 700 }, menu, &|| by_path(PlainFs::new()), &|| {
            by_path(LowerDirsFs::new(count))
        });
    }
}

/// One upper directory, whose mounts are served by the FUSE engine and by the kernel engine in random turn.
#[test]
fn an_upper_directory_is_one_tree_to_both_engines() {
    let steps =
        |seed, count| [&AlternatingFs::UNLINK[..], &generate(seed, count, &image(), AlternatingFs::MENU)].concat();
    search("engines", Effort { runs: 6, ops: 500 }, &steps, &mut |ops| {
        let seed = ops.len() as u64;
        execute(ops, &|| by_path(AlternatingFs::new(seed))).err()
    });
}

/// Whiteouts, opaque and moved directories, and metadata-only copies, as kernel overlayfs writes them.
#[test]
fn upper_directories_of_kernel_overlayfs_are_read() {
    for seed in 1..=8 {
        let mut kernel = by_path(KernelUpperFs(OverlayFs::without_index(seed % 2 == 0)));
        let ops = generate(seed, 400, &image(), OverlayFs::MENU);
        for op in ops.into_iter().filter(|op| *op != Check) {
            // Whether and how the kernel does it is not checked here.
            let _any = kernel.apply(&op);
        }
        kernel.finish().unwrap_or_else(|wrong| panic!("seed {seed}: plyfs sees something else:\n{wrong}"));
    }
}

#[test]
fn regression_truncating_a_file_to_its_own_size_leaves_its_time() {
    let ops = [Create { at: "x", mode: 0o600, excl: true }, Remount, Truncate { at: "x", size: 0 }, Remount];
    replay(&ops, &|| by_path(PlyfsFs::new(&[])));
}

#[test]
fn regression_seek_hole_accounts_for_data_not_yet_written_back() {
    replay(
        &[
            Create { at: "x", mode: 0o600, excl: true },
            Hold { slot: 4, at: "x", write: true },
            HeldWrite { slot: 4, offset: 65536, len: 26, fill: 125 },
            Seek { at: "x", offset: 4161, hole: false },
        ],
        &|| by_path(PlyfsFs::new(&[])),
    );
}

#[test]
fn regression_an_exchanged_directory_gets_its_new_parent() {
    replay(
        &[
            Mkdir { at: "x", mode: 0o700 },
            Check,
            Symlink { at: "x/link", target: "../dir" },
            Rename { from: "x/link", to: "e", how: Exchange },
            Check,
        ],
        &|| by_path(PlyfsFs::new(&[])),
    );
}

/// Removing a whiteout must not remove a file whose name only looks like the other form of that whiteout.
#[test]
fn regression_a_name_that_looks_like_a_whiteout_survives_a_real_one() {
    let ops = [
        Mkdir { at: "opaque/.wh.a", mode: 0o755 },
        Create { at: "d/.wh.a", mode: 0o644, excl: true },
        Rename { from: "opaque/a", to: "x", how: Allow },
        Rename { from: "d/a", to: "y", how: Allow },
        Create { at: "opaque/a", mode: 0o755, excl: true },
        Mkdir { at: "d/a", mode: 0o755 },
        Remount,
        Check,
    ];
    for count in [1, 10] {
        replay(&ops, &|| in_process(count, User::own()));
    }
}

/// Guards against a file that loses its capabilities in a copy-up, to a truncation after they are set.
#[test]
fn regression_capabilities_survive_a_copy_up() {
    replay(&[Link { from: "suid", to: "d/b/x", follow: false }, Check], &|| {
        Box::new(InodeHarness::new(Union::new(User::own()), umask(), Checks::ALL))
    });
}

/// Checks the layer between the model's operations and a file system's own, with an in-memory file system.
#[test]
fn an_in_memory_file_system_answers_as_the_model_does() {
    let fresh = || -> Box<dyn Harness> { Box::new(InodeHarness::new(InMemory::new(&image()), umask(), Checks::ALL)) };
    soak("in memory", Effort { runs: 12, ops: 1500 }, PlyfsFs::MENU, &fresh);
}

/// Compares two known file systems, so that the comparison itself is known to work.
#[test]
fn kernel_overlayfs_answers_as_a_plain_directory_does() {
    let menu = Menu { optional: false, ..OverlayFs::MENU };
    compare("plain and overlayfs", Effort { runs: 3, ops: 1000 }, menu, &|| by_path(PlainFs::new()), &|| {
        by_path(OverlayFs::new(false))
    });
}

/// A harness that skips one operation, to see that a run finds the fault.
struct SkippingHarness {
    inner: Box<dyn Harness>,
    skips: fn(&Op) -> bool,
}

impl Harness for SkippingHarness {
    fn apply(&mut self, op: &Op) -> Result<Outcome, i32> {
        if (self.skips)(op) { Ok(Outcome::Done) } else { self.inner.apply(op) }
    }

    fn tree(&mut self) -> Tree {
        self.inner.tree()
    }

    fn content(&mut self, path: &[u8]) -> Vec<u8> {
        self.inner.content(path)
    }

    fn checks(&self) -> Checks {
        self.inner.checks()
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        self.inner.finish()
    }
}

#[test]
fn a_fault_is_found_and_its_run_is_shortened() {
    let skipped: [fn(&Op) -> bool; 4] = [
        |op| matches!(op, Op::HeldTruncate { size: 1.., .. }),
        |op| matches!(op, Op::Chmod { mode: 0o4755, .. }),
        |op| matches!(op, Op::Rename { how: Replace::Exchange, .. }),
        |op| matches!(op, Op::HeldMapStore { .. }),
    ];
    for skips in skipped {
        let fresh = || -> Box<dyn Harness> { Box::new(SkippingHarness { inner: by_path(PlainFs::new()), skips }) };
        let ops = generate(3, 1500, &image(), PlainFs::MENU);
        let failure = execute(&ops, &fresh).expect_err("the fault is not found");
        let (short, failure) = shrink(ops, failure, &mut |ops| execute(ops, &fresh).err());
        assert!(short.iter().any(skips) && short.len() <= 6, "{failure:?}: {short:#?}");
    }
}

/// Checks the test's layer builder, too: a mount of the layers without an upper directory shows the image.
#[test]
fn the_layers_built_for_the_model_show_its_image() {
    let env = TestEnv::new();
    pull_image(&env);
    let mount = env.mount("model:1", &[]);
    let (model, tree) = (Model::new(&image()), scan(mount.path(), Contents::Hash));
    let wrong = Checker::new(Checks::ALL).tree(&model, &tree, &mut |_| Vec::new());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// An example of what a failing run prints: the path to the removed directory leads through that directory.
#[test]
fn regression_removing_a_directory_through_a_path_inside_it() {
    replay(
        &[
            Mkdir { at: "x", mode: 0o755 },
            Symlink { at: "x/up", target: ".." },
            RemoveAll { at: "x/up/x" },
            Rename { from: "e", to: "f", how: Allow },
            Check,
        ],
        &|| by_path(PlainFs::new()),
    );
}

/// The kernel went on with the listing in a cache that an older one had filled.
#[test]
fn regression_a_listing_misses_no_name_that_was_created_during_an_older_listing() {
    for disturbance in [Disturbance::default, || Disturbance::kills(KILL_INTERVAL)] {
        replay(
            &[
                Mkdir { at: "x", mode: 0o700 },
                Hold { slot: 3, at: "x", write: false },
                Hold { slot: 2, at: "x", write: false },
                Create { at: "x/e", mode: 0o644, excl: false },
                HeldListBegin { slot: 2 },
                Create { at: "x/<.wh.255>", mode: 0o644, excl: true },
                HeldListBegin { slot: 3 },
                HeldListEnd { slot: 2 },
                HeldListEnd { slot: 3 },
            ],
            &|| by_path(PlyfsFs::new(&[]).disturbed_by(disturbance())),
        );
    }
}
