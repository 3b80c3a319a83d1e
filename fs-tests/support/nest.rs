//! Upper directories on another overlay file system, where whiteout devices cannot be made.

use std::path::PathBuf;
use std::process::Command;

use rustix::mount::UnmountFlags;

use super::env::{TestEnv, run};

/// The file system of an upper directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpperFs {
    /// The file system of the test's own directory.
    Disk,
    /// Kernel overlayfs.
    Overlayfs,
    /// A mount of `plyfs overlay`, with further options.
    Plyfs(&'static str),
}

/// A mounted file system for an upper directory, unmounted on drop.
pub struct NestedFs {
    at: PathBuf,
    is_nested: bool,
}

impl NestedFs {
    /// Mounts the file system in a directory of the environment.
    pub fn new(env: &TestEnv, upper_fs: UpperFs) -> NestedFs {
        let [at, lower, upper, work] = ["nest", "nest-lower", "nest-upper", "nest-work"].map(|name| env.path(name));
        [&at, &lower, &upper, &work].into_iter().for_each(|dir| std::fs::create_dir(dir).unwrap());
        let dirs = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let mount = match upper_fs {
            UpperFs::Disk => None,
            UpperFs::Overlayfs => {
                let mut mount = Command::new("mount");
                mount.args(["-t", "overlay", "overlay", "-o", &dirs]);
                Some(mount)
            }
            UpperFs::Plyfs(more) => Some(env.command(["overlay", "-o", &format!("{dirs}{more}")])),
        };
        if let Some(mut mount) = mount {
            let mounted = run(mount.arg(&at));
            assert_eq!(mounted.code, 0, "{mounted:?}");
        }
        NestedFs { is_nested: upper_fs != UpperFs::Disk, at }
    }

    /// Mounts the file system, and creates an upper and a work directory on it.
    pub fn with_upper(env: &TestEnv, upper_fs: UpperFs) -> NestedFs {
        let nest = NestedFs::new(env, upper_fs);
        ["upper", "work"].into_iter().for_each(|name| std::fs::create_dir(nest.path(name)).unwrap());
        nest
    }

    /// A path on the file system.
    pub fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }

    /// Whether a file system was mounted, other than the test directory's own.
    pub fn is_nested(&self) -> bool {
        self.is_nested
    }
}

impl Drop for NestedFs {
    fn drop(&mut self) {
        if self.is_nested {
            // A lazy unmount: mounts on this file system may still be ending, and a failed test does not wait for them.
            let _gone = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}
