//! What stands behind `-o`: fuse-overlayfs's options. Those that have no meaning here are accepted as it accepts them.

use crate::cli::mount_options;
use crate::fs::Forms;
use crate::fuse::{IdRange, Options};
use crate::sys::{self, RemountFlags};
use crate::upper::Owners;
use crate::whiteout::{CONTAINERS_OVERRIDE, PRIVILEGED_OVERRIDE};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// As many lower directories as the kernel's overlayfs takes.
const MOST_LAYERS: usize = 500;
/// The kernel takes a page of each, with its end.
const MOST_BYTES: usize = 4095;

/// Options, read.
#[derive(Debug)]
pub(super) struct Parsed {
    /// The topmost first.
    pub lower: Vec<PathBuf>,
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub owners: Owners,
    /// Whether nothing is ever synced.
    pub volatile: bool,
    pub static_nlink: bool,
    /// Which forms may be written.
    pub forms: Forms,
    pub options: Options,
    /// Whether a dead mount at the mountpoint is unmounted first.
    pub replace: bool,
    /// What nobody knows, to be warned about.
    pub unknown: Vec<Vec<u8>>,
}

/// Options without a value that ask for what every mount does anyway, or for what has no meaning here.
const WITHOUT_EFFECT: &[&str] = &[
    "rw",
    "atime",
    "noatime",
    "relatime",
    "diratime",
    "nodiratime",
    "lazytime",
    "strictatime",
    "async",
    "sync",
    "dirsync",
    "splice_write",
    "splice_read",
    "splice_move",
    "kernel_cache",
    "auto_cache",
    "max_write",
    "threaded",
    "fast_ino",
    "writeback",
    "xino",
    "ino32_t",
    "auto_unmount",
    "clone_fd",
    "debug",
    "nonempty",
    "userxattr",
    "use_ino",
    "big_writes",
    "defaults",
    "noauto",
    "nofail",
    "_netdev",
];
/// The same with a value.
const VALUES_WITHOUT_EFFECT: &[&str] = &[
    "timeout",
    "threaded",
    "fast_ino",
    "writeback",
    "xino",
    "index",
    "nfs_export",
    "plugins",
    "max_write",
    "max_idle_threads",
    "max_threads",
    "subtype",
    "uuid",
    "verity",
    "max_read",
    "attr_timeout",
    "entry_timeout",
    "negative_timeout",
    "fd",
];

/// Says that something is passed over, in the words that the original has.
pub(super) fn warn_unknown(argument: &[u8]) {
    crate::cli::output::complaint(format_args!("unknown argument ignored: {}", crate::name::show(argument)));
}

/// Reads comma-separated lists of options, later ones winning.
pub(super) fn parse(lists: &[OsString]) -> anyhow::Result<Parsed> {
    let root = sys::is_root();
    let mut options = Options::for_user("fuse-overlayfs", root);
    (options.default_permissions, options.dev) = (true, false);
    let mut parsed = Parsed {
        lower: Vec::new(),
        upper: None,
        work: None,
        owners: Owners::Native,
        volatile: false,
        static_nlink: false,
        forms: Forms::default(),
        options,
        replace: false,
        unknown: Vec::new(),
    };
    for option in lists.iter().flat_map(|list| split(list.as_bytes(), b',')).filter(|option| !option.is_empty()) {
        if !apply(&option, &mut parsed)? {
            parsed.unknown.push(option);
        }
    }
    if parsed.lower.is_empty() {
        anyhow::bail!("no lower directory given: -o lowerdir=DIR[:DIR...]");
    }
    if parsed.lower.len() > MOST_LAYERS {
        anyhow::bail!("{} lower directories given: at most {MOST_LAYERS} can be merged", parsed.lower.len());
    }
    let ids = [&mut parsed.options.users, &mut parsed.options.groups];
    for (map, file) in ids.into_iter().zip(["overflowuid", "overflowgid"]) {
        let number = std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).ok();
        map.overflow = number.and_then(|text| text.trim().parse().ok()).unwrap_or(65534);
    }
    Ok(parsed)
}

/// What a remount is to set, if the options ask for one. The kernel's own options are dropped by mount.fuse(8) unless they
/// are `suid` or `dev`.
pub(super) fn remount(lists: &[OsString]) -> Option<RemountFlags> {
    let all: Vec<Vec<u8>> = lists.iter().flat_map(|list| split(list.as_bytes(), b',')).collect();
    let words = all.iter().filter_map(|option| str::from_utf8(option).ok());
    mount_options::remount(words, RemountFlags::NOSUID | RemountFlags::NODEV)
}

/// Splits at a separator that no backslash stands before and that is not between quotes. The backslashes stay.
fn split(text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let (mut parts, mut quoted, mut escaped) = (vec![Vec::new()], false, false);
    for byte in text.iter().copied() {
        if byte == separator && !quoted && !escaped {
            parts.push(Vec::new());
            continue;
        }
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        if let Some(part) = parts.last_mut() {
            part.push(byte);
        }
    }
    parts
}

/// Takes the backslashes away, each standing for the byte behind it.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut bytes) = (Vec::with_capacity(text.len()), text.iter().copied());
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}

/// A path as the caller means it: it may end elsewhere than it looks, so nothing of it is taken away.
fn path(text: &[u8]) -> anyhow::Result<PathBuf> {
    let given = PathBuf::from(OsString::from_vec(unescape(text)));
    if given.is_absolute() {
        return Ok(given);
    }
    let here = std::env::current_dir().map_err(|e| anyhow::anyhow!("no working directory: {}", sys::describe(&e)))?;
    Ok(here.join(given))
}

/// Whether the option is known.
fn apply(option: &[u8], parsed: &mut Parsed) -> anyhow::Result<bool> {
    let equals = option.iter().position(|byte| *byte == b'=');
    match equals {
        Some(at) => match str::from_utf8(&option[..at]) {
            Ok(key) => apply_value(key, &option[at + 1..], parsed),
            Err(_) => Ok(false),
        },
        None => Ok(str::from_utf8(option).is_ok_and(|key| apply_flag(key, parsed))),
    }
}

fn apply_flag(key: &str, parsed: &mut Parsed) -> bool {
    let options = &mut parsed.options;
    match key {
        "squash_to_root" => {
            options.users.squash.get_or_insert(0);
            options.groups.squash.get_or_insert(0);
        }
        "static_nlink" => parsed.static_nlink = true,
        "volatile" => parsed.volatile = true,
        "replace" => parsed.replace = true,
        "noacl" => options.acls = false,
        "noxattrs" => options.xattrs = false,
        "ro" => options.read_only = true,
        "allow_root" => options.allow_root = true,
        key if mount_options::apply_flag(key, options) => {}
        key => return WITHOUT_EFFECT.contains(&key) || key.starts_with("x-"),
    }
    true
}

fn apply_value(key: &str, value: &[u8], parsed: &mut Parsed) -> anyhow::Result<bool> {
    let options = &mut parsed.options;
    let text = String::from_utf8_lossy(&unescape(value)).into_owned();
    let number = || text.parse().map_err(|_| anyhow::anyhow!("{key}={text}: wanted a number"));
    let is_on = || Ok::<bool, anyhow::Error>(number()? != 0);
    let kernels = || match text.len() > MOST_BYTES {
        true => Err(anyhow::anyhow!("{key}= is longer than the {MOST_BYTES} bytes that the kernel takes")),
        false => Ok(text.clone()),
    };
    match key {
        "lowerdir" => {
            let parts = split(value, b':').into_iter().filter(|part| !part.is_empty());
            parsed.lower = parts.map(|part| path(&part)).collect::<anyhow::Result<_>>()?;
        }
        "upperdir" => parsed.upper = Some(path(value)?),
        "workdir" => parsed.work = Some(path(value)?),
        "uidmapping" => options.users.ranges = mapping(key, &text)?,
        "gidmapping" => options.groups.ranges = mapping(key, &text)?,
        "squash_to_uid" => options.users.squash = Some(number()?),
        "squash_to_gid" => options.groups.squash = Some(number()?),
        "squash_to_root" if is_on()? => return Ok(apply_flag(key, parsed)),
        "xattr_permissions" => {
            parsed.owners = match number()? {
                0 => Owners::Native,
                1 => Owners::Attribute(PRIVILEGED_OVERRIDE),
                2 => Owners::Attribute(CONTAINERS_OVERRIDE),
                _ => anyhow::bail!("xattr_permissions={text}: wanted 0, 1 or 2"),
            }
        }
        "fsync" => parsed.volatile = !is_on()?,
        "volatile" => parsed.volatile = is_on()?,
        "static_nlink" => parsed.static_nlink = is_on()?,
        "noacl" => options.acls = !is_on()?,
        "noxattrs" => options.xattrs = !is_on()?,
        "redirect_dir" => parsed.forms.redirects = switch(key, &text)?,
        "metacopy" => parsed.forms.metacopies = switch(key, &text)?,
        "fsname" => options.source = kernels()?,
        "context" | "fscontext" | "defcontext" | "rootcontext" => {
            // Without SELinux the kernel does not know them.
            let label = format!("{key}={}", kernels()?);
            options.kernel_options.extend(Some(label).filter(|_| Path::new("/sys/fs/selinux/enforce").exists()));
        }
        "wake" => options.waking = mount_options::waking(&text)?,
        "place" => options.placing = mount_options::placing(&text)?,
        "comment" => {}
        _ => return Ok(VALUES_WITHOUT_EFFECT.contains(&key) || key.starts_with("x-")),
    }
    Ok(true)
}

/// `on` or `off`, with the other words that the kernel has.
fn switch(key: &str, text: &str) -> anyhow::Result<bool> {
    match text {
        "on" | "follow" | "1" => Ok(true),
        "off" | "nofollow" | "0" => Ok(false),
        _ => anyhow::bail!("{key}={text}: wanted on or off"),
    }
}

/// Triples of numbers with colons between them; there may be further colons.
fn mapping(key: &str, text: &str) -> anyhow::Result<Vec<IdRange>> {
    let wrong = || anyhow::anyhow!("{key}={text}: wanted DISK:SHOWN:LENGTH, and more of those behind a colon");
    let numbers: Vec<u32> = text
        .split(':')
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().map_err(|_| wrong()))
        .collect::<anyhow::Result<_>>()?;
    let triples = numbers.chunks_exact(3);
    if !triples.remainder().is_empty() {
        return Err(wrong());
    }
    Ok(triples.map(|triple| IdRange { disk: triple[0], shown: triple[1], len: triple[2] }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Parsed> {
        parse(&[text.into()])
    }

    #[test]
    fn lists_are_split_where_nothing_is_escaped() {
        let parsed = read(r"lowerdir=/a\:b:/c\,d::/e\\f:,,upperdir=/u\:v,workdir=/w,").unwrap();
        assert_eq!(parsed.lower, [r"/a:b", "/c,d", r"/e\f"].map(PathBuf::from));
        assert_eq!((parsed.upper, parsed.work), (Some("/u:v".into()), Some("/w".into())));
        assert!(parsed.unknown.is_empty());
        let here = std::env::current_dir().unwrap();
        assert_eq!(read("lowerdir=l/X/../diff1").unwrap().lower, [here.join("l/X/../diff1")]);
        let labelled = read(r#"lowerdir=/a,context="system_u:object_r:x:s0:c1,c2",volatile"#).unwrap();
        assert!(labelled.volatile && labelled.unknown.is_empty());
    }

    #[test]
    fn what_is_unknown_is_kept_for_a_warning_and_the_last_word_counts() {
        let parsed = read("lowerdir=/x,lowerdir=/a,bogus,timeout=1.5,a=b,suid,nosuid,dev,xino=on,fsync=0").unwrap();
        assert_eq!(parsed.unknown, [b"bogus".to_vec(), b"a=b".to_vec()]);
        assert_eq!(parsed.lower, [PathBuf::from("/a")]);
        assert!(!parsed.options.suid && parsed.options.dev && parsed.volatile);
    }

    #[test]
    fn mappings_are_triples() {
        let parsed = read("lowerdir=/a,uidmapping=:0:100000:65536,gidmapping=0:10:1:1:20:5,squash_to_uid=7").unwrap();
        let range = |disk, shown, len| IdRange { disk, shown, len };
        assert_eq!(parsed.options.users.ranges, [range(0, 100_000, 65536)]);
        assert_eq!(parsed.options.groups.ranges, [range(0, 10, 1), range(1, 20, 5)]);
        assert_eq!((parsed.options.users.squash, parsed.options.groups.squash), (Some(7), None));
        let squashed = read("lowerdir=/a,squash_to_gid=9,squash_to_root").unwrap().options;
        assert_eq!((squashed.users.squash, squashed.groups.squash), (Some(0), Some(9)));
    }

    #[test]
    fn nonsense_is_named() {
        let lowers = |count: usize| format!("lowerdir={}", vec!["/a"; count].join(":"));
        for (bad, says) in [
            ("upperdir=/u".to_string(), "lowerdir="),
            (lowers(501), "501"),
            ("lowerdir=/a,uidmapping=0:1".into(), "uidmapping=0:1"),
            ("lowerdir=/a,uidmapping=0;1;2".into(), "uidmapping"),
            ("lowerdir=/a,xattr_permissions=3".into(), "xattr_permissions=3"),
            ("lowerdir=/a,squash_to_uid=x".into(), "squash_to_uid=x"),
            (format!("lowerdir=/a,fsname={}", "x".repeat(4096)), "fsname= is longer"),
        ] {
            let said = read(&bad).unwrap_err().to_string();
            assert!(said.contains(says) && !said.contains('\n'), "{bad}: {said}");
        }
        assert!(read(&lowers(500)).is_ok());
    }
}
