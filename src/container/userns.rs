//! Root's rights for a plain user, over nothing but his own: a user namespace.
//!
//! In it he is root, and the other users of an image are numbers of his that the administrator has set apart for him
//! (`/etc/subuid`, `/etc/subgid`), given by the set-id programs newuidmap and newgidmap. Where there are none, only root
//! is anybody there: programs run, but none can give a file to another user or become one.

use crate::sys::{self, Fork, Namespaces};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The kernel takes at most as many lines in a map.
const MOST_RANGES: usize = 339;

/// Who is who in the user namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// 0 is the user himself, and the numbers from 1 are his too.
    Ranges {
        /// The largest user number.
        last_user: u32,
        /// The largest group number.
        last_group: u32,
    },
    /// 0 is the user himself, and there is nobody else.
    Own {
        /// Why, as a whole line.
        why: String,
    },
}

/// Why there is no user namespace. One whole line.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// The kernel refused.
    #[error("cannot make a user namespace: {}{}", sys::describe(.0), hint(.0))]
    Refused(io::Error),
    /// What is needed beside it failed.
    #[error("cannot set the user namespace up: {}", sys::describe(.0))]
    Setup(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => " (this machine keeps them from plain users)",
        Some(Errno::NOSPC | Errno::USERS) => " (/proc/sys/user/max_user_namespaces allows no more)",
        _ => "",
    }
}

/// A part of the numbers of this machine that is a user's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: u32,
    count: u32,
}

/// Enters a new user namespace, with all capabilities there, as user and group 0; and a new mount namespace, cut off from
/// the one before. The process must have one thread. Supplementary groups stay: what they open is open still.
pub fn enter() -> Result<Mapping, UsernsError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ranges = subordinate(uid);
    let helper = match ranges {
        Ok((uids, gids)) => Helper::start(map(uid, &uids), map(gid, &gids)).map(Ok)?,
        Err(why) => Err(why),
    };
    let both = Namespaces { user: true, mount: true, ..Namespaces::default() };
    sys::unshare(both).map_err(UsernsError::Refused)?;
    let mapping = match helper {
        Ok(helper) => helper.finish()?,
        Err(why) => Mapping::Own { why },
    };
    if let Mapping::Own { .. } = mapping {
        map_only(uid, gid)?;
    }
    sys::become_user(0, 0, None)?;
    sys::isolate_mounts().map_err(UsernsError::Refused)?;
    Ok(mapping)
}

/// Maps nobody but the user himself. A group map that is there already stays.
fn map_only(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    if std::fs::read("/proc/self/gid_map")?.is_empty() {
        // Or he could shed a group that denies him something.
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// A map's lines: the user himself, then his ranges, without a gap.
fn map(own: u32, ranges: &[Range]) -> Vec<[u32; 3]> {
    let mut lines = vec![[0, own, 1]];
    let mut next = 1;
    for range in ranges.iter().take(MOST_RANGES) {
        let count = range.count.min(u32::MAX - 1 - next);
        if count > 0 {
            lines.push([next, range.first, count]);
            next += count;
        }
    }
    lines
}

fn last(map: &[[u32; 3]]) -> u32 {
    map.last().map_or(0, |[first, _, count]| first + count - 1)
}

/// A user's subordinate users and groups, or why there are none.
fn subordinate(uid: u32) -> Result<(Vec<Range>, Vec<Range>), String> {
    let name = sys::user_name(uid);
    let name = name.as_ref().map_or(&b""[..], |name| name.as_bytes());
    let of = |path: &str| {
        let table = std::fs::read(Path::new(path)).unwrap_or_default();
        let ranges = ranges_of(&table, name, uid);
        if ranges.is_empty() { Err(format!("{path} has no numbers for user {uid}")) } else { Ok(ranges) }
    };
    Ok((of("/etc/subuid")?, of("/etc/subgid")?))
}

/// The ranges that a table like `/etc/subuid` gives to the user, named by name or number.
fn ranges_of(table: &[u8], name: &[u8], uid: u32) -> Vec<Range> {
    let range = |line: &[u8]| {
        let mut fields = line.trim_ascii().split(|b| *b == b':');
        let owner = fields.next()?;
        let mut number = || str::from_utf8(fields.next()?).ok()?.parse().ok();
        let range = Range { first: number()?, count: number()? };
        let fits = range.count > 0 && range.first.checked_add(range.count - 1)? != u32::MAX;
        let his = (owner == name && !name.is_empty()) || owner == uid.to_string().as_bytes();
        (fits && his).then_some(range)
    };
    table.split(|b| *b == b'\n').filter_map(range).collect()
}

/// A process outside of the namespace that runs newuidmap and newgidmap for it.
struct Helper {
    process: i32,
    go: io::PipeWriter,
    said: PipeReader,
    users: u32,
    groups: u32,
}

impl Helper {
    fn start(users: Vec<[u32; 3]>, groups: Vec<[u32; 3]>) -> io::Result<Helper> {
        let (mut wait, go) = io::pipe()?;
        let (said, mut say) = io::pipe()?;
        let namespace = std::process::id();
        match sys::fork()? {
            Fork::Parent(process) => Ok(Helper { process, go, said, users: last(&users), groups: last(&groups) }),
            Fork::Child => {
                drop(go);
                // Without a word the other side has given up.
                if wait.read_exact(&mut [0]).is_err() {
                    sys::leave(1);
                }
                let done = run_mapper("newgidmap", namespace, &groups)
                    .and_then(|()| run_mapper("newuidmap", namespace, &users));
                if let Err(why) = &done {
                    // Who does not hear it sees the code.
                    let _unheard = say.write_all(why.as_bytes());
                }
                sys::leave(i32::from(done.is_err()))
            }
        }
    }

    /// Has the maps written, now that there is a namespace.
    fn finish(self) -> io::Result<Mapping> {
        let Helper { process, mut go, mut said, users, groups } = self;
        go.write_all(&[1])?;
        drop(go);
        if sys::wait_for(process)? == sys::Ended::Code(0) {
            return Ok(Mapping::Ranges { last_user: users, last_group: groups });
        }
        // The reader of its own pipe holds no writing end of it: the process that had that has ended.
        let mut why = String::new();
        said.read_to_string(&mut why)?;
        Ok(Mapping::Own { why })
    }
}

fn run_mapper(program: &str, process: u32, map: &[[u32; 3]]) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg(process.to_string()).args(map.iter().flatten().map(u32::to_string));
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{program}: {}", sys::describe(&e)))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().next().unwrap_or("failed");
    Err(format!("{program}: {}", line.trim_start_matches(program).trim_start_matches(": ")))
}

/// Opens a user namespace of another process, to enter it.
pub fn of_process(process: u32) -> io::Result<File> {
    File::open(format!("/proc/{process}/ns/user"))
}

/// Whether a user namespace is not this process's own.
pub fn is_other(namespace: &File) -> io::Result<bool> {
    let identity = |file: &File| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    Ok(identity(namespace)? != identity(&File::open("/proc/self/ns/user")?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let table = b"root:1:2\nann:100000:65536\n 1000:300000:10 \nann:x:5\nann:5\nann:7:0\n\
            # ann:1:1\nbob:200000:65536\nann:4294967290:6\nann:4294967290:5\nann:4294967290:4294967295\n:9:9\n";
        let range = |first, count| Range { first, count };
        let his = [range(100_000, 65_536), range(300_000, 10), range(4_294_967_290, 5)];
        assert_eq!(ranges_of(table, b"ann", 1000), his);
        assert_eq!(ranges_of(table, b"", 1000), [range(300_000, 10)]);
        assert_eq!(ranges_of(table, b"eve", 1001), []);
    }

    #[test]
    fn maps_have_no_gap_and_no_number_twice() {
        let ranges = [Range { first: 100_000, count: 10 }, Range { first: 5000, count: 3 }];
        let lines = map(1000, &ranges);
        assert_eq!(lines, [[0, 1000, 1], [1, 100_000, 10], [11, 5000, 3]]);
        assert_eq!(last(&lines), 13);
        assert_eq!(last(&map(7, &[])), 0);
        let huge = map(7, &[Range { first: 8, count: u32::MAX - 9 }; 3]);
        assert_eq!(last(&huge), u32::MAX - 2);
    }
}
