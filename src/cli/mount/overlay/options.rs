//! Mount options (`-o`) of `overlay`: those of fuse-overlayfs. Options without an effect here are accepted too.

use crate::cli::mount::options as mount_options;
use crate::fs::Forms;
use crate::fuse::{IdRange, Options};
use crate::sys::{self, RemountFlags};
use crate::upper::Owners;
use crate::whiteout::{CONTAINERS_OVERRIDE, PRIVILEGED_OVERRIDE};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The kernel overlayfs's limit of lower directories (OVL_MAX_STACK).
const MOST_LAYERS: usize = 500;
/// The longest value to pass to the kernel: one page, including the final NUL.
const MOST_BYTES: usize = 4095;

/// Parsed mount options.
#[derive(Debug)]
pub(super) struct Parsed {
    /// Lower directories, the topmost first.
    pub lower: Vec<PathBuf>,
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub owners: Owners,
    /// Never sync to disk.
    pub volatile: bool,
    pub static_nlink: bool,
    /// The on-disk features (redirects, metacopies) that may be written.
    pub forms: Forms,
    pub options: Options,
    /// Unmount a dead mount at the mountpoint first.
    pub replace: bool,
    /// Unknown options, to warn about.
    pub unknown: Vec<Vec<u8>>,
}

/// Ignored options without a value: they ask for what every plyfs mount does anyway, or have no meaning here.
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
/// Ignored options with a value.
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

/// Warns about an ignored argument, with fuse-overlayfs's message.
pub(super) fn warn_unknown(argument: &[u8]) {
    crate::cli::output::stdout::complaint(format_args!("unknown argument ignored: {}", crate::name::show(argument)));
}

/// Parses comma-separated lists of options; later ones win.
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
        anyhow::bail!("{} lower directories given: the maximum is {MOST_LAYERS}", parsed.lower.len());
    }
    let ids = [&mut parsed.options.users, &mut parsed.options.groups];
    for (map, file) in ids.into_iter().zip(["overflowuid", "overflowgid"]) {
        let number = std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).ok();
        map.overflow = number.and_then(|text| text.trim().parse().ok()).unwrap_or(65534);
    }
    Ok(parsed)
}

/// Returns the flags that a remount sets; `None` without the option `remount`. mount.fuse(8) never passes `nosuid` and
/// `nodev`, so they are the defaults.
pub(super) fn remount(lists: &[OsString]) -> Option<RemountFlags> {
    let all: Vec<Vec<u8>> = lists.iter().flat_map(|list| split(list.as_bytes(), b',')).collect();
    let words = all.iter().filter_map(|option| str::from_utf8(option).ok());
    mount_options::remount(words, RemountFlags::NOSUID | RemountFlags::NODEV)
}

/// Splits at separators outside double quotes and not escaped by a backslash. Keeps the backslashes.
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

/// Removes the backslashes of escaped bytes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut plain, mut bytes) = (Vec::with_capacity(text.len()), text.iter().copied());
    while let Some(byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().unwrap_or(byte) } else { byte });
    }
    plain
}

/// Returns the absolute path, not normalised: `..` after a symbolic link must be resolved by the kernel.
fn path(text: &[u8]) -> anyhow::Result<PathBuf> {
    let given = PathBuf::from(OsString::from_vec(unescape(text)));
    if given.is_absolute() {
        return Ok(given);
    }
    let here = std::env::current_dir().map_err(|e| anyhow::anyhow!("no working directory: {}", sys::describe(&e)))?;
    Ok(here.join(given))
}

/// Applies an option; returns false if it is unknown.
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
    let kernel_value = || match text.len() > MOST_BYTES {
        true => Err(anyhow::anyhow!("{key}= exceeds the kernel's limit of {MOST_BYTES} bytes")),
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
        "fsname" => options.source = kernel_value()?,
        "context" | "fscontext" | "defcontext" | "rootcontext" => {
            // Without SELinux the kernel rejects these options.
            let label = format!("{key}={}", kernel_value()?);
            options.kernel_options.extend(Some(label).filter(|_| Path::new("/sys/fs/selinux/enforce").exists()));
        }
        "wake" => options.waking = mount_options::waking(&text)?,
        "place" => options.placing = mount_options::placing(&text)?,
        "comment" => {}
        _ => return Ok(VALUES_WITHOUT_EFFECT.contains(&key) || key.starts_with("x-")),
    }
    Ok(true)
}

/// Parses `on` or `off`, or the other values that kernel overlayfs accepts.
fn switch(key: &str, text: &str) -> anyhow::Result<bool> {
    match text {
        "on" | "follow" | "1" => Ok(true),
        "off" | "nofollow" | "0" => Ok(false),
        _ => anyhow::bail!("{key}={text}: wanted on or off"),
    }
}

/// Parses ID mappings: triples of numbers, all separated by colons. Empty fields are ignored.
fn mapping(key: &str, text: &str) -> anyhow::Result<Vec<IdRange>> {
    let wrong = || anyhow::anyhow!("{key}={text}: wanted DISK:SHOWN:LENGTH[:DISK:SHOWN:LENGTH...]");
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
    fn lists_are_split_at_unescaped_separators() {
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
    fn unknown_options_are_collected_and_the_last_option_wins() {
        let parsed = read("lowerdir=/x,lowerdir=/a,bogus,timeout=1.5,a=b,suid,nosuid,dev,xino=on,fsync=0").unwrap();
        assert_eq!(parsed.unknown, [b"bogus".to_vec(), b"a=b".to_vec()]);
        assert_eq!(parsed.lower, [PathBuf::from("/a")]);
        assert!(!parsed.options.suid && parsed.options.dev && parsed.volatile);
    }

    #[test]
    fn id_mappings_are_parsed_as_triples() {
        let parsed = read("lowerdir=/a,uidmapping=:0:100000:65536,gidmapping=0:10:1:1:20:5,squash_to_uid=7").unwrap();
        let range = |disk, shown, len| IdRange { disk, shown, len };
        assert_eq!(parsed.options.users.ranges, [range(0, 100_000, 65536)]);
        assert_eq!(parsed.options.groups.ranges, [range(0, 10, 1), range(1, 20, 5)]);
        assert_eq!((parsed.options.users.squash, parsed.options.groups.squash), (Some(7), None));
        let squashed = read("lowerdir=/a,squash_to_gid=9,squash_to_root").unwrap().options;
        assert_eq!((squashed.users.squash, squashed.groups.squash), (Some(0), Some(9)));
    }

    #[test]
    fn errors_name_the_bad_option() {
        let lowers = |count: usize| format!("lowerdir={}", vec!["/a"; count].join(":"));
        for (bad, says) in [
            ("upperdir=/u".to_string(), "lowerdir="),
            (lowers(501), "501"),
            ("lowerdir=/a,uidmapping=0:1".into(), "uidmapping=0:1"),
            ("lowerdir=/a,uidmapping=0;1;2".into(), "uidmapping"),
            ("lowerdir=/a,xattr_permissions=3".into(), "xattr_permissions=3"),
            ("lowerdir=/a,squash_to_uid=x".into(), "squash_to_uid=x"),
            (format!("lowerdir=/a,fsname={}", "x".repeat(4096)), "fsname= exceeds"),
        ] {
            let said = read(&bad).unwrap_err().to_string();
            assert!(said.contains(says) && !said.contains('\n'), "{bad}: {said}");
        }
        assert!(read(&lowers(500)).is_ok());
    }
}
