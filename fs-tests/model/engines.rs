//! A union whose upper directory both engines use in turn: each mount is by the FUSE engine or by the kernel engine, at
//! random.

use std::path::Path;

use super::check::Checks;
use super::generate::Menu;
use super::mounted::{kill_daemon, overlay, pull_image};
use super::op::Op;
use super::place::{TestFs, View, kernel_view};
use super::random::Random;
use crate::support::env::{Mount, TestEnv};
use crate::support::nest::{NestedFs, UpperFs};

/// The image in three layers, mounted with an upper directory by a random engine.
pub struct AlternatingFs {
    mount: Option<Mount>,
    /// The engine of that mount, as an option.
    engine: &'static str,
    nest: NestedFs,
    env: TestEnv,
    random: Random,
}

impl AlternatingFs {
    /// What the kernel's union can do.
    pub const MENU: Menu = Menu { held_readers: false, optional: false, remounts: true };
    /// Removes the image's hard links: the kernel engine breaks them when it copies a file up, the FUSE engine does not.
    pub const UNLINK: [Op; 3] = [Op::Unlink { at: "b" }, Op::Unlink { at: "dir/b" }, Op::Unlink { at: "dir/sub/leaf" }];

    pub fn new(seed: u64) -> AlternatingFs {
        let env = TestEnv::new();
        pull_image(&env);
        let nest = NestedFs::with_upper(&env, UpperFs::Disk);
        let mut test_fs = AlternatingFs { mount: None, engine: "", nest, env, random: Random::new(seed) };
        test_fs.mount();
        test_fs
    }

    fn mount(&mut self) {
        self.engine = if self.random.percent(50) { "--engine=kernel" } else { "--engine=fuse" };
        let (upper, work) = (self.nest.path("upper"), self.nest.path("work"));
        let mut command = self.env.command(["mount", self.engine, "--upper"]);
        self.mount = Some(Mount::start(&self.env, command.arg(upper).arg("--work").arg(work).arg("model:1")));
    }
}

impl TestFs for AlternatingFs {
    fn root(&self) -> &Path {
        self.mount.as_ref().expect("the file system is mounted").path()
    }

    fn remount(&mut self) {
        self.mount.take().expect("the file system is mounted").unmount();
        self.mount();
    }

    /// The kernel engine has no process to kill.
    fn kill(&mut self) {
        match self.engine {
            "--engine=fuse" => kill_daemon(&self.env, self.mount.take().expect("the file system is mounted")),
            _ => self.mount.take().expect("the file system is mounted").unmount(),
        }
        self.mount();
    }

    fn checks(&self) -> Checks {
        // The kernel's union numbers copies anew, counts no subdirectories, and copies content later, with a new time.
        Checks { numbers: false, links: false, dir_nlink: false, file_times: false, dir_times: false, ..Checks::ALL }
    }

    fn may_refuse(&self, op: &Op) -> Option<i32> {
        match op {
            // The kernel writes where a directory came from into an attribute of 256 bytes.
            Op::Rename { .. } | Op::Link { .. } | Op::HeldLink { .. } => Some(libc::EXDEV),
            _ => op.may_be_refused(),
        }
    }

    fn finish(&mut self) -> Result<Vec<View>, String> {
        self.mount.take().expect("the file system is mounted").unmount();
        let checks = Checks { hidden_xattrs: &["trusted.overlay."], ..self.checks() };
        Ok(vec![kernel_view(&overlay(&self.env, &self.nest), checks)])
    }
}
