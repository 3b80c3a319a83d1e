//! Image mounts by the kernel engine: selection of the engine, the mount and its registration.

use crate::cli::config;
use crate::cli::mount::options::Parsed;
use crate::kernel::{self, Changes, Engine, KernelError};
use crate::store::mounts::{self, Guard};
use crate::store::{Image, Store};
use crate::sys::{self, MountFlags};
use std::path::{Path, PathBuf};

/// Mounts an image by the kernel engine, if it is wanted and, with [`Engine::Auto`], possible. Returns the registration
/// if the FUSE engine is to serve the mount.
pub(super) fn mount(
    store: &Store,
    image: &Image,
    guard: Guard,
    place: Option<&(PathBuf, PathBuf)>,
    parsed: &Parsed,
    foreground: bool,
) -> anyhow::Result<Option<Guard>> {
    let engine = parsed.engine.map_or_else(config::engine, Ok)?;
    let mounted = match engine {
        Engine::Fuse => return Ok(Some(guard)),
        Engine::Auto if foreground => return Ok(Some(guard)),
        Engine::Kernel if foreground => Err(anyhow::anyhow!("--foreground needs the FUSE engine")),
        Engine::Kernel | Engine::Auto => mount_image(store, image, &guard, place, parsed),
    };
    match mounted {
        Ok(id) => {
            tracing::debug!("the kernel serves {} at {}", parsed.options.source, guard.info().mountpoint.display());
            let at = guard.info().mountpoint.clone();
            // A mount without a record protects its image from nothing.
            guard.leave_to_kernel(id).inspect_err(|_| drop(sys::unmount(&at, true)))?;
            Ok(None)
        }
        Err(why) if engine == Engine::Auto && why.downcast_ref().is_some_and(KernelError::is_unsupported) => {
            tracing::info!("the FUSE engine serves the mount: {why}");
            Ok(Some(guard))
        }
        Err(why) => {
            guard.release()?;
            Err(why)
        }
    }
}

fn mount_image(
    store: &Store,
    image: &Image,
    guard: &Guard,
    place: Option<&(PathBuf, PathBuf)>,
    parsed: &Parsed,
) -> anyhow::Result<sys::MountId> {
    let options = &parsed.options;
    let scratch = guard.scratch()?;
    let changes = place.map(|(upper, work)| Changes { upper, work, volatile: parsed.volatile });
    let flags = MountFlags { write: changes.is_some(), suid: options.suid, dev: options.dev, exec: options.exec };
    let wanted = kernel::Wanted { source: &options.source, scratch: &scratch, changes, flags };
    let at = &guard.info().mountpoint;
    let mounted = kernel::mount_image(store, image, at, &wanted);
    // Fails only if something else is mounted there; then the registration's end removes it.
    let _left = std::fs::remove_dir(&scratch);
    mounted?;
    sys::mount_id(at).map_err(|e| {
        let _mounted = sys::unmount(at, true);
        anyhow::anyhow!("cannot identify the mount at {}: {}", at.display(), sys::describe(&e))
    })
}

/// Whether the topmost mount at a path is one of the kernel engine.
pub(super) fn serves(store: &Store, path: &Path) -> anyhow::Result<bool> {
    let id = mounts::by_mountpoint(store, path)?.and_then(|mount| mount.kernel);
    Ok(id.is_some_and(|id| sys::mount_id(path).is_ok_and(|top| top == id.into())))
}
