//! Running programs inside a mounted image. Shared with the benchmarks, so it needs nothing but std.

use std::path::Path;
use std::process::Command;

/// Mounts what programs expect, in namespaces of their own, so that all of it is gone when the script ends: the host
/// cannot be touched, and nothing keeps the image busy afterwards. The packages of `scripts/make-debs` are in `/mnt`.
const ENTER: &str = r#"
root=$1 debs=$2 script=$3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind -o ro "$debs" "$root/mnt"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    /bin/bash -euc "$script"
"#;

/// apt-get, looking at nothing but the packages in `/mnt`.
pub const APT: &str = "apt-get -qq -o Dir::Etc::SourceList=/mnt/sources.list -o Dir::Etc::SourceParts=/dev/null \
     -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 --no-install-recommends";

/// A bash script that is run in the image mounted at `root`, with the directory `debs` in `/mnt`.
pub fn chroot(root: &Path, debs: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-euc", ENTER]);
    command.arg("bash").args([root, debs]).arg(script);
    command
}
