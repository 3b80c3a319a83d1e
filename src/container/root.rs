//! Mounts the root file system of a sandbox, by either engine.

use super::run_error::RunError;
use super::userns::Mapping;
use crate::fuse::{OnSignal, Options, ServiceError, SupervisedMount, Supervisor};
use crate::image::{self, OpenTree};
use crate::kernel::{self, Changes, Engine, KernelError};
use crate::store::{Image, Store};
use crate::sys::{self, MountFlags};
use crate::upper::Upper;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A root file system to mount.
pub struct Root<'a> {
    /// The store that has the image.
    pub store: &'a Store,
    /// The image.
    pub image: &'a Image,
    /// What the mount table shows as the source.
    pub source: &'a str,
    /// The upper and the work directory; without them the mount is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Whether changes are never synced to disk.
    pub volatile: bool,
    /// The engine that mounts it.
    pub engine: Engine,
    /// The ID mapping, if the process is in a user namespace.
    pub mapping: Option<&'a Mapping>,
    /// A path for an empty directory, at which the lower file system is mounted for a moment.
    pub scratch: PathBuf,
}

/// A mounted root file system.
pub struct MountedRoot {
    /// Detaches it.
    pub detach: Box<dyn Fn() -> io::Result<()> + Send>,
    /// Waits until it is detached and all its files are closed.
    pub finish: Box<dyn FnOnce() -> io::Result<()>>,
}

impl Root<'_> {
    /// Mounts the root file system at a directory of this process's mount namespace.
    pub fn mount(&self, at: &Path) -> Result<MountedRoot, RunError> {
        match self.engine {
            Engine::Fuse => self.mount_fuse(at),
            // In a user namespace the kernel engine is only for changes.
            _ if self.mapping.is_some() && self.upper.is_none() => self.mount_fuse(at),
            Engine::Kernel => self.mount_kernel(at).map_err(|why| RunError::own(why.to_string())),
            Engine::Auto => match self.mount_kernel(at) {
                Err(why) if why.is_unsupported() => {
                    tracing::debug!("the FUSE engine serves the root file system: {why}");
                    self.mount_fuse(at)
                }
                done => done.map_err(|why| RunError::own(why.to_string())),
            },
        }
    }

    fn mount_fuse(&self, at: &Path) -> Result<MountedRoot, RunError> {
        let own = |e: image::Error| RunError::own(e.to_string());
        let others = sys::descriptors()?;
        let opened = image::open_tree(self.store, self.image).map_err(own)?;
        let open = |(upper, work)| image::open_upper(upper, work, &opened.tree, self.volatile, &[]);
        let upper = self.upper.clone().map(open).transpose().map_err(own)?;
        let mounted = self.serve(at, opened, upper, &others).map_err(|e| RunError::own(e.to_string()))?;
        Ok(MountedRoot { detach: Box::new(mounted.detacher()), finish: Box::new(|| mounted.finish()) })
    }

    /// Mounts by FUSE, with a process of its own that needs none of the `others` of this process's descriptors.
    fn serve(
        &self,
        at: &Path,
        opened: OpenTree,
        upper: Option<Upper>,
        others: &[i32],
    ) -> Result<SupervisedMount, ServiceError> {
        // The process is root, in its user namespace at least.
        let options = Options::for_user(self.source, true);
        let inodes = opened.tree.nodes().len() as u64;
        let supervisor = Supervisor::mount(at, options, upper.is_some(), inodes, OnSignal::Ignored)?;
        let make = |handover| opened.into_fs(upper, Some(handover)).map_err(|e| e.to_string());
        supervisor.start(make, others)
    }

    /// Mounts by the kernel engine; in a user namespace only what changes.
    fn mount_kernel(&self, at: &Path) -> Result<MountedRoot, KernelError> {
        fs::create_dir_all(&self.scratch).map_err(|cause| KernelError::Io {
            action: "make",
            path: self.scratch.clone(),
            cause,
        })?;
        let changes = self.upper.as_ref().map(|(upper, work)| Changes { upper, work, volatile: self.volatile });
        let flags = MountFlags { write: changes.is_some(), suid: true, dev: true, exec: true };
        let wanted = kernel::Wanted { source: self.source, scratch: &self.scratch, changes, flags };
        let mounted = match (self.mapping, &wanted.changes) {
            (Some(mapping), Some(changes)) => self.mount_over_fuse(at, mapping, &wanted, changes),
            _ => kernel::mount_image(self.store, self.image, at, &wanted).map(|()| {
                let at = at.to_owned();
                MountedRoot { detach: Box::new(move || sys::unmount(&at, true)), finish: Box::new(|| Ok(())) }
            }),
        };
        let _left = fs::remove_dir(&self.scratch);
        mounted
    }

    /// Mounts kernel overlayfs over a read-only FUSE mount.
    fn mount_over_fuse(
        &self,
        at: &Path,
        mapping: &Mapping,
        wanted: &kernel::Wanted<'_>,
        changes: &Changes<'_>,
    ) -> Result<MountedRoot, KernelError> {
        if let Mapping::Own { .. } = mapping {
            return Err(KernelError::OneUser);
        }
        let locked = kernel::prepare_native(self.store, self.image, changes)?;
        let others = sys::descriptors().map_err(|e| KernelError::Lower(sys::describe(&e)))?;
        let lower = image::open_tree(self.store, self.image)?;
        let served = self.serve(wanted.scratch, lower, None, &others).map_err(|e| KernelError::Lower(e.to_string()))?;
        // On an error the session ends with this process's mount namespace.
        kernel::mount_over(at, wanted, changes)?;
        let at = at.to_owned();
        let finish = move || {
            let ended = served.finish();
            drop(locked);
            ended
        };
        Ok(MountedRoot { detach: Box::new(move || sys::unmount(&at, true)), finish: Box::new(finish) })
    }
}
