//! Cleanup of mounts that other programs left behind.

use std::fs;
use std::path::Path;

use crate::engine::run;

/// Unmounts everything below a directory, the last mounted first.
pub fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let ours: Vec<&str> = points.filter(|point| Path::new(point).starts_with(dir)).collect();
    for point in ours.iter().rev() {
        let _gone_with_another = run(&["umount", "--lazy", point].map(str::to_owned));
    }
}
