//! What a FUSE server and the kernel agree on at the beginning of a mount (FUSE_INIT).

use fuser::{InitFlags, KernelConfig};

/// The maximum of background requests in flight, such as write-back and read-ahead (`max_background`).
const BACKGROUND: u16 = 64;
/// The largest request that the kernel sends by default, in bytes (fs.fuse.max_pages_limit).
pub(super) const MAX_REQUEST: u32 = 1 << 20;

/// Asks for all that the kernel supports and the server uses. `honors_acls`: the kernel enforces POSIX ACLs. Returns
/// whether the kernel maintains the times of files (FUSE_WRITEBACK_CACHE).
pub fn negotiate(config: &mut KernelConfig, is_writable: bool, honors_acls: bool) -> bool {
    let mut keeps_times = false;
    let wanted = [
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_NO_OPEN_SUPPORT,
        InitFlags::FUSE_NO_OPENDIR_SUPPORT,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_PARALLEL_DIROPS,
        // NFS file handles may outlive their inode: lookups of a removed inode's number fail, and a later inode
        // with the same number has another generation.
        InitFlags::FUSE_EXPORT_SUPPORT,
    ];
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::warn!("this kernel's FUSE lacks {flag:?}: some operations will be slower");
        }
    }
    if is_writable {
        let written = [InitFlags::FUSE_WRITEBACK_CACHE, InitFlags::FUSE_DONT_MASK, InitFlags::FUSE_HAS_IOCTL_DIR];
        // Without it the kernel clears set-ID bits itself, with a getxattr request before each write and chown.
        if config.add_capabilities(InitFlags::FUSE_HANDLE_KILLPRIV_V2).is_err() {
            tracing::debug!("this kernel's FUSE asks for file capabilities before each write");
        }
        for flag in written {
            if config.add_capabilities(flag).is_err() {
                tracing::warn!("this kernel's FUSE lacks {flag:?}: writing will be slower, or modes be masked twice");
            }
        }
        keeps_times = config.capabilities().contains(InitFlags::FUSE_WRITEBACK_CACHE);
        if let Err(fits) = config.set_max_background(BACKGROUND) {
            config.set_max_background(fits).ok();
        }
    }
    if honors_acls && config.add_capabilities(InitFlags::FUSE_POSIX_ACL).is_err() {
        tracing::warn!("this kernel's FUSE does not support POSIX ACLs: they are shown, but not enforced");
    }
    // Both calls fail only for a value out of range, and return the nearest valid one.
    if let Err(fits) = config.set_max_write(MAX_REQUEST) {
        config.set_max_write(fits).ok();
    }
    if let Err(fits) = config.set_max_readahead(MAX_REQUEST) {
        config.set_max_readahead(fits).ok();
    }
    keeps_times
}
