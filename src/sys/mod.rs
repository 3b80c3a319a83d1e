//! System calls that std lacks, behind safe typed wrappers. Contains all `unsafe` code.

mod error;
mod fd;
mod kernel_mount;
mod map;
mod mount;
mod namespace;
mod process;
mod shared;
mod signals;
mod wait;

pub use error::{describe, is_callers};
pub use fd::{
    begin_write_back, file_handle, get_file_attributes, keep_open_at_exec, replace_descriptor, set_close_on_exec,
    set_file_attributes, set_nonblocking,
};
pub use kernel_mount::{
    INITIAL_USER_NAMESPACE, MountId, Overlay, is_mounted, is_overlay_upper, mount_erofs, mount_id, mount_overlay,
};
pub use map::{Bytes, map};
pub use mount::{
    MountFlags, MountedAt, RemountFlags, device_of, is_disconnected, mount_fuse, mount_fuse_by_helper, mounts, remount,
    remount_flags, set_read_ahead, takes_changes, unmount,
};
pub use namespace::{
    Namespaces, Restrictions, attach, become_user, bring_loopback_up, copy_mount, die_with_parent,
    enter_mount_namespace, enter_process_namespace, enter_root, enter_user_namespace, isolate_mounts, make_read_only,
    new_file_system, quiet_copy, set_groups, unshare,
};
pub use process::{
    Fork, adopt_descriptor, close_descriptors, close_inherited, descriptors, detach_from_terminal, fork, fork_first,
    fork_sharing_descriptors, is_root, proc_dir, raise_descriptor_limit, raise_oom_score, return_free_memory,
    user_name,
};
pub use shared::SharedWords;
pub use signals::{Received, Signals, begin_with_all_signals};
pub use wait::{Ended, kill, leave, thread_end, wait_for, wait_for_any};
