//! Running programs inside a mounted image. Shared with the benchmarks, so it needs nothing but std.

use std::path::Path;
use std::process::Command;

/// Mounts /proc, /dev and the like in new namespaces, which end with the script: the script cannot change the host, and
/// nothing keeps the image busy afterwards. The packages of `scripts/make-debs` are in `/mnt`.
const ENTER: &str = r#"
root=$1 debs=$2 script=$3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind -o ro "$debs" "$root/mnt"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
    /bin/bash -euc "$script"
"#;

/// apt-get with the packages in `/mnt` as its only source.
pub const APT: &str = "apt-get -qq -o Dir::Etc::SourceList=/mnt/sources.list -o Dir::Etc::SourceParts=/dev/null \
     -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 --no-install-recommends";

/// A command that runs a bash script in the image mounted at `root`, with the directory `debs` at `/mnt`.
pub fn chroot(root: &Path, debs: &Path, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-euc", ENTER]);
    command.arg("bash").args([root, debs]).arg(script);
    command
}
