//! User namespaces, in which an unprivileged user is root.
//!
//! The other IDs of an image are mapped to the user's subordinate IDs (/etc/subuid, /etc/subgid) by the set-user-ID
//! programs newuidmap and newgidmap. Without subordinate IDs only root is mapped: programs run, but cannot change a
//! file's owner or become another user.

use crate::sys::{self, Fork, Namespaces};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The maximum number of lines in an ID map (user_namespaces(7): 340), less the user's own.
const MOST_RANGES: usize = 339;

/// The ID mapping of a user namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Mapping {
    /// ID 0 is the user; IDs from 1 are the user's subordinate IDs.
    Ranges {
        /// The largest mapped user ID.
        last_user: u32,
        /// The largest mapped group ID.
        last_group: u32,
    },
    /// Only ID 0 is mapped, to the user.
    Own {
        /// Why no subordinate IDs are mapped; one line.
        why: String,
    },
}

/// Why a user namespace could not be created. Messages are one line.
#[derive(Debug, thiserror::Error)]
pub enum UsernsError {
    /// The kernel refused.
    #[error("cannot create a user namespace: {}{}", sys::describe(.0), hint(.0))]
    Refused(io::Error),
    /// A step of the setup failed.
    #[error("cannot set up the user namespace: {}", sys::describe(.0))]
    Setup(#[from] io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => " (this host denies them to unprivileged users)",
        Some(Errno::NOSPC | Errno::USERS) => " (the limit in /proc/sys/user/max_user_namespaces is reached)",
        _ => "",
    }
}

/// A range of subordinate IDs on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: u32,
    count: u32,
}

/// Enters a new user namespace as root with all capabilities, and a new private mount namespace. The process must be
/// single-threaded. Supplementary groups are kept, and still give access to files.
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

/// Maps only the user's own IDs. Keeps a group map that is written already.
fn map_only(uid: u32, gid: u32) -> io::Result<()> {
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    if std::fs::read("/proc/self/gid_map")?.is_empty() {
        // The kernel requires this (user_namespaces(7)): dropping a group could grant access that the group denies.
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// The lines of an ID map (ID inside, ID outside, count): the user's own ID, then the ranges, without gaps.
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

/// A user's subordinate user and group IDs, or why there are none.
fn subordinate(uid: u32) -> Result<(Vec<Range>, Vec<Range>), String> {
    let name = sys::user_name(uid);
    let name = name.as_ref().map_or(&b""[..], |name| name.as_bytes());
    let of = |path: &str| {
        let table = std::fs::read(Path::new(path)).unwrap_or_default();
        let ranges = ranges_of(&table, name, uid);
        if ranges.is_empty() { Err(format!("{path} has no IDs for user {uid}")) } else { Ok(ranges) }
    };
    Ok((of("/etc/subuid")?, of("/etc/subgid")?))
}

/// Parses a user's ranges in a file like /etc/subuid, where the user is listed by name or ID.
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

/// A helper process outside the namespace that runs newuidmap and newgidmap.
struct Helper {
    process: i32,
    /// One byte starts the mapping.
    release: io::PipeWriter,
    /// The helper's error text.
    errors: PipeReader,
    users: u32,
    groups: u32,
}

impl Helper {
    fn start(users: Vec<[u32; 3]>, groups: Vec<[u32; 3]>) -> io::Result<Helper> {
        let (mut wait, release) = io::pipe()?;
        let (errors, mut error_writer) = io::pipe()?;
        let namespace = std::process::id();
        match sys::fork()? {
            Fork::Parent(process) => {
                Ok(Helper { process, release, errors, users: last(&users), groups: last(&groups) })
            }
            Fork::Child => {
                drop(release);
                // End of file: the parent could not create the namespace.
                if wait.read_exact(&mut [0]).is_err() {
                    sys::leave(1);
                }
                let done = run_mapper("newgidmap", namespace, &groups)
                    .and_then(|()| run_mapper("newuidmap", namespace, &users));
                if let Err(why) = &done {
                    // If the parent cannot read it, the exit code still shows the failure.
                    let _unread = error_writer.write_all(why.as_bytes());
                }
                sys::leave(i32::from(done.is_err()))
            }
        }
    }

    /// Has the helper write the maps. The namespace must exist.
    fn finish(self) -> io::Result<Mapping> {
        let Helper { process, mut release, mut errors, users, groups } = self;
        release.write_all(&[1])?;
        drop(release);
        if sys::wait_for(process)? == sys::Ended::Code(0) {
            return Ok(Mapping::Ranges { last_user: users, last_group: groups });
        }
        // Does not block: this process dropped its write end, and the helper has exited.
        let mut why = String::new();
        errors.read_to_string(&mut why)?;
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
    let stderr = String::from_utf8_lossy(&output.stderr);
    let line = stderr.lines().next().unwrap_or("failed");
    Err(format!("{program}: {}", line.trim_start_matches(program).trim_start_matches(": ")))
}

/// Opens another process's user namespace.
pub fn of_process(process: u32) -> io::Result<File> {
    File::open(format!("/proc/{process}/ns/user"))
}

/// Whether a user namespace differs from this process's own.
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
