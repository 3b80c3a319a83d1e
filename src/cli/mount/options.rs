//! Mount options (`-o`) of `mount` and mount.plyfs.

use crate::fuse::{Options, Placing, Waking};
use crate::kernel::Engine;
use crate::sys::RemountFlags;
use std::path::PathBuf;

/// Parsed mount options.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Parsed {
    /// Options of the FUSE mount.
    pub options: Options,
    /// `rw` or `ro`, whichever is last.
    pub writable: Option<bool>,
    /// `upper=`: the upper directory, which receives all changes.
    pub upper: Option<PathBuf>,
    /// `work=`: the work directory, on the same file system.
    pub work: Option<PathBuf>,
    /// `volatile`: never sync to disk.
    pub volatile: bool,
    /// `root=`: the store directory, for fstab lines, which cannot name it otherwise.
    pub root: Option<PathBuf>,
    /// `engine=`: which engine serves the mount; by default [`crate::cli::config::engine`].
    pub engine: Option<Engine>,
    /// `replace`: unmount a dead mount at the mountpoint first.
    pub replace: bool,
}

/// Ignored options: those of mount(8) and systemd, and those that ask for what every plyfs mount does anyway.
const WITHOUT_EFFECT: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "lazytime",
    "nolazytime",
    "nostrictatime",
    "silent",
    "loud",
    "remount",
];

/// Parses comma-separated lists of options on top of `defaults`; later ones win. An unknown option is an error, or
/// ignored with `sloppy` (mount(8)'s `-s`).
pub(in crate::cli) fn parse(lists: &[String], defaults: Options, sloppy: bool) -> anyhow::Result<Parsed> {
    let mut parsed = Parsed {
        options: defaults,
        writable: None,
        upper: None,
        work: None,
        volatile: false,
        root: None,
        engine: None,
        replace: false,
    };
    for option in lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
        if !apply(option, &mut parsed)? && !sloppy {
            anyhow::bail!("unknown mount option: {option}");
        }
    }
    Ok(parsed)
}

/// Applies an option; returns false if it is unknown.
fn apply(option: &str, parsed: &mut Parsed) -> anyhow::Result<bool> {
    let options = &mut parsed.options;
    match option.split_once('=') {
        Some(("wake", value)) => options.waking = waking(value)?,
        Some(("place", value)) => options.placing = placing(value)?,
        Some(("engine", value)) => parsed.engine = Some(engine(value)?),
        Some(("fsname", value)) => options.source = value.into(),
        Some(("root", value)) => parsed.root = Some(value.into()),
        Some(("upper", value)) => parsed.upper = Some(value.into()),
        Some(("work", value)) => parsed.work = Some(value.into()),
        // mount(8) passes these on a remount, from the mount table.
        Some(("comment" | "user_id" | "group_id" | "max_read" | "blksize", _)) => {}
        Some((key, _)) if key.starts_with("x-") => {}
        Some(_) => return Ok(false),
        None => match option {
            "ro" => parsed.writable = Some(false),
            "rw" => parsed.writable = Some(true),
            "volatile" => parsed.volatile = true,
            "replace" => parsed.replace = true,
            other if apply_flag(other, options) => {}
            other => return Ok(WITHOUT_EFFECT.contains(&other) || other.starts_with("x-")),
        },
    }
    Ok(true)
}

/// Returns the flags that a remount sets, starting from `flags`; `None` without the option `remount`.
pub(in crate::cli) fn remount<'a>(
    options: impl Iterator<Item = &'a str>,
    mut flags: RemountFlags,
) -> Option<RemountFlags> {
    let mut is_remount = false;
    for option in options {
        is_remount |= option == "remount";
        let (bit, set) = match option {
            "ro" | "rw" => (RemountFlags::RDONLY, option == "ro"),
            "suid" | "nosuid" => (RemountFlags::NOSUID, option == "nosuid"),
            "dev" | "nodev" => (RemountFlags::NODEV, option == "nodev"),
            "exec" | "noexec" => (RemountFlags::NOEXEC, option == "noexec"),
            "atime" | "noatime" => (RemountFlags::NOATIME, option == "noatime"),
            "diratime" | "nodiratime" => (RemountFlags::NODIRATIME, option == "nodiratime"),
            "norelatime" | "relatime" => (RemountFlags::RELATIME, option == "relatime"),
            "nostrictatime" | "strictatime" => (RemountFlags::STRICTATIME, option == "strictatime"),
            "nolazytime" | "lazytime" => (RemountFlags::LAZYTIME, option == "lazytime"),
            "symfollow" | "nosymfollow" => (RemountFlags::NOSYMFOLLOW, option == "nosymfollow"),
            "async" | "sync" => (RemountFlags::SYNCHRONOUS, option == "sync"),
            _ => continue,
        };
        flags.set(bit, set);
    }
    is_remount.then_some(flags)
}

/// Applies a flag that fuse(8) or the kernel defines; returns false for any other.
pub(in crate::cli) fn apply_flag(option: &str, options: &mut Options) -> bool {
    match option {
        "suid" => options.suid = true,
        "nosuid" => options.suid = false,
        "dev" => options.dev = true,
        "nodev" => options.dev = false,
        "exec" => options.exec = true,
        "noexec" => options.exec = false,
        "allow_other" => options.allow_other = true,
        "noallow_other" => options.allow_other = false,
        "default_permissions" => options.default_permissions = true,
        "nodefault_permissions" => options.default_permissions = false,
        _ => return false,
    }
    true
}

/// Parses the value of `wake=`.
pub(in crate::cli) fn waking(value: &str) -> anyhow::Result<Waking> {
    Ok(match value {
        "auto" => Waking::Auto,
        "latency" => Waking::Latency,
        "poll" => Waking::Poll,
        "off" => Waking::Off,
        _ => anyhow::bail!("mount option wake={value}: wanted auto, latency, poll or off"),
    })
}

/// Parses the value of `engine=` and `--engine`.
pub(in crate::cli) fn engine(value: &str) -> anyhow::Result<Engine> {
    Engine::of_word(value).ok_or_else(|| anyhow::anyhow!("engine '{value}': wanted fuse, kernel or auto"))
}

/// Parses the value of `place=`.
pub(in crate::cli) fn placing(value: &str) -> anyhow::Result<Placing> {
    Ok(match value {
        "auto" => Placing::Auto,
        "follow" => Placing::Follow,
        "off" => Placing::Off,
        _ => anyhow::bail!("mount option place={value}: wanted auto, follow or off"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, sloppy: bool) -> anyhow::Result<Parsed> {
        parse(&[text.to_string()], Options::for_user("image", true), sloppy)
    }

    #[test]
    fn the_last_of_several_options_wins() {
        let parsed = read("nosuid,suid,dev,nodev,rw,ro,wake=poll,fsname=x", false).unwrap();
        assert!(parsed.options.suid && !parsed.options.dev && parsed.writable == Some(false));
        assert_eq!((parsed.options.waking, &*parsed.options.source), (Waking::Poll, "x"));
    }

    #[test]
    fn a_remount_uses_the_last_of_several_options() {
        let flags = |text: &str, set| remount(text.split(','), set);
        assert_eq!(flags("ro,nosuid", RemountFlags::empty()), None);
        assert_eq!(flags("ro,remount,rw,noexec", RemountFlags::empty()), Some(RemountFlags::NOEXEC));
        let unsafe_off = RemountFlags::NOSUID | RemountFlags::NODEV;
        assert_eq!(flags("remount,dev,noatime", unsafe_off), Some(RemountFlags::NOSUID | RemountFlags::NOATIME));
        assert!(read("rw,noatime,remount,user_id=0,group_id=0,default_permissions,allow_other", false).is_ok());
    }

    #[test]
    fn fstab_options_are_accepted_and_unknown_ones_named() {
        let parsed = read("defaults,noauto,nofail,x-systemd.automount,x-a=b,_netdev,root=/srv/plyfs", false).unwrap();
        assert_eq!(parsed.root, Some("/srv/plyfs".into()));
        assert_eq!(parsed.options, Options::for_user("image", true));
        assert_eq!(read("nosiud", false).unwrap_err().to_string(), "unknown mount option: nosiud");
        assert!(read("nosiud", true).is_ok());
        assert!(read("wake=loud", true).is_err());
        assert_eq!(read("engine=kernel", false).unwrap().engine, Some(Engine::Kernel));
        assert_eq!(read("engine=x", false).unwrap_err().to_string(), "engine 'x': wanted fuse, kernel or auto");
        assert_eq!(read("place=follow", false).unwrap().options.placing, Placing::Follow);
        let wrong = "mount option place=0: wanted auto, follow or off";
        assert_eq!(read("place=0", false).unwrap_err().to_string(), wrong);
    }
}
