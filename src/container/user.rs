//! Resolves `USER[:GROUP]`, in Docker's syntax, with the image's /etc/passwd and /etc/group.

use super::User;
use super::rootfs::Rootfs;
use crate::sys;
use rustix::io::Errno;
use std::io;

/// The maximum size of /etc/passwd and /etc/group in bytes: an image must not make plyfs read gigabytes.
const CAP: u64 = 8 << 20;
/// The largest ID that Docker accepts.
const LARGEST: u32 = i32::MAX as u32;

/// Why a user could not be resolved. Messages are one line.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The user name is not in /etc/passwd.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The group name is not in /etc/group.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// The ID is out of range.
    #[error("uids and gids must be in range 0-{LARGEST}")]
    Range,
    /// /etc/passwd or /etc/group cannot be read.
    #[error("cannot read the image's {0}: {why}", why = sys::describe(.1))]
    Unreadable(&'static str, io::Error),
}

/// One line of `/etc/passwd`.
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

/// One line of `/etc/group`.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `spec`: `USER`, `USER:GROUP` or `:GROUP`, as names or IDs; an empty `spec` is root. An ID that is not in
/// /etc/passwd is used as it is, with group 0.
///
/// The supplementary groups are those in /etc/group that list the user, unless `spec` has a group. The primary group is
/// always among them: otherwise a set-group-ID program would drop it, and gain access that the group is denied.
pub fn resolve(root: &Rootfs, spec: &str) -> Result<User, UserError> {
    resolve_with(|path| read(root, path), spec)
}

/// [`resolve`] with a function that reads /etc/passwd and /etc/group; a missing one is empty.
pub fn resolve_with(read: impl Fn(&'static str) -> Result<String, UserError>, spec: &str) -> Result<User, UserError> {
    let accounts = read("/etc/passwd")?;
    let accounts: Vec<Account> = lines(&accounts).filter_map(account).collect();
    let (name, group) = spec.split_once(':').unwrap_or((spec, ""));
    let number = if name.is_empty() { Some(0) } else { number(name)? };
    let found = accounts.into_iter().find(|a| number.map_or(a.name == name, |uid| a.uid == uid));
    let (account, mut user) = match (found, number) {
        (Some(a), _) => (Some(a.name), User { uid: a.uid, gid: a.gid, groups: Vec::new(), home: a.home }),
        (None, Some(uid)) => (None, User { uid, ..User::default() }),
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    if user.home.is_empty() {
        user.home = "/".to_owned();
    }
    let groups = read("/etc/group")?;
    let groups: Vec<Group> = lines(&groups).filter_map(parse_group).collect();
    if !group.is_empty() {
        user.gid = find_group(&groups, group)?;
    } else if let Some(name) = account {
        user.groups.extend(groups.iter().filter(|g| g.members.contains(&name)).map(|g| g.gid));
    }
    let first = user.gid;
    user.groups.retain(|gid| *gid != first);
    user.groups.insert(0, first);
    Ok(user)
}

fn find_group(groups: &[Group], wanted: &str) -> Result<u32, UserError> {
    let number = number(wanted)?;
    let found = groups.iter().find(|g| number.map_or(g.name == wanted, |gid| g.gid == gid));
    found.map(|g| g.gid).or(number).ok_or_else(|| UserError::NoGroup(wanted.to_owned()))
}

/// Parses an ID; `None` for a name. Fails if the ID is out of range.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse().ok().filter(|n| *n <= LARGEST).map(Some).ok_or(UserError::Range)
}

/// Reads a file; returns an empty text if there is no such regular file.
fn read(root: &Rootfs, path: &'static str) -> Result<String, UserError> {
    use io::ErrorKind::{InvalidInput, NotADirectory, NotFound};
    match root.read(path, CAP) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) if matches!(e.kind(), NotFound | NotADirectory | InvalidInput) => Ok(String::new()),
        Err(e) if Errno::from_io_error(&e) == Some(Errno::LOOP) => Ok(String::new()),
        Err(e) => Err(UserError::Unreadable(path, e)),
    }
}

/// The lines that are neither empty nor comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Parses a line of /etc/passwd. Ignores a line with invalid IDs; Docker reads these as 0, which would mean root.
fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(Account { name, uid, gid, home })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next()?.to_owned();
    let gid = id(fields.nth(1)?)?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').map(str::trim).filter(|m| !m.is_empty()).map(str::to_owned).collect();
    Some(Group { name, gid, members })
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|n| *n <= LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/bash

# a comment
  daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bad:x:abc:7::/bad:
huge:x:4294967295:4294967295::/:
short:x:40:50
+nis
ann:x:1000:1001:Ann,,,:/home/ann:/bin/sh
twin:x:1000:1002::/home/twin:/bin/sh
77:x:78:79::/home/odd:/bin/sh
";
    const GROUP: &str = "\
root:x:0:root
adm:x:4:syslog,ann
# ann:x:5:ann
ann:x:1001:ann
audio:*:29:ann,daemon
broken:x:x:ann
void:x:60
";

    fn place(passwd: &str, group: &str) -> (tempfile::TempDir, Rootfs) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        fs::write(dir.path().join("etc/group"), group).unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap();
        (dir, rootfs)
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.into() }
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        let (_dir, root) = place(PASSWD, GROUP);
        let found = |spec: &str| resolve(&root, spec).unwrap();
        assert_eq!(found(""), user(0, 0, &[0], "/root"));
        assert_eq!(found("root"), user(0, 0, &[0], "/root"));
        assert_eq!(found("ann"), user(1000, 1001, &[1001, 4, 29], "/home/ann"));
        assert_eq!(found("1000"), found("ann"), "the first line with the number counts");
        assert_eq!(found("twin"), user(1000, 1002, &[1002], "/home/twin"));
        assert_eq!(found("daemon"), user(1, 1, &[1, 29], "/usr/sbin"));
        assert_eq!(found("short"), user(40, 50, &[50], "/"));
        assert_eq!(found("4242"), user(4242, 0, &[0], "/"));
        assert_eq!(found("77"), user(77, 0, &[0], "/"), "a number is never a name");
        assert_eq!(found("ann:audio"), user(1000, 29, &[29], "/home/ann"));
        assert_eq!(found("ann:4242"), user(1000, 4242, &[4242], "/home/ann"));
        assert_eq!(found(":audio"), user(0, 29, &[29], "/root"));
        assert_eq!(found("5:void"), user(5, 60, &[60], "/"));
        assert_eq!(found("ann:"), found("ann"));
    }

    #[test]
    fn unknown_users_and_groups_give_dockers_errors() {
        let (_dir, root) = place(PASSWD, GROUP);
        let said = |spec: &str| resolve(&root, spec).unwrap_err().to_string();
        assert_eq!(said("bob"), "unable to find user bob: no matching entries in passwd file");
        assert_eq!(said("root:staff"), "unable to find group staff: no matching entries in group file");
        let range = "uids and gids must be in range 0-2147483647";
        for spec in ["-1", "4294967295", "0:99999999999999999999", "1:-1"] {
            assert_eq!(said(spec), range, "{spec}");
        }
        // Nobody becomes root, or nobody at all, by a line that cannot be read.
        assert_eq!(said("bad"), "unable to find user bad: no matching entries in passwd file");
        assert_eq!(said("huge"), "unable to find user huge: no matching entries in passwd file");
        assert_eq!(said("0:broken"), "unable to find group broken: no matching entries in group file");
    }

    #[test]
    fn an_image_without_the_files_or_with_traps_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = Rootfs::open(dir.path()).unwrap();
        assert_eq!(resolve(&root, "").unwrap(), user(0, 0, &[0], "/"));
        assert_eq!(resolve(&root, "7:8").unwrap(), user(7, 8, &[8], "/"));
        assert!(matches!(resolve(&root, "root"), Err(UserError::NoUser(_))));
        fs::create_dir_all(dir.path().join("etc/group")).unwrap();
        symlink("/etc/passwd", dir.path().join("etc/passwd")).unwrap();
        assert!(matches!(resolve(&root, "root"), Err(UserError::NoUser(_))));
        fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        let long = fs::File::create(dir.path().join("etc/passwd")).unwrap();
        long.set_len(CAP + 1).unwrap();
        let said = resolve(&root, "root").unwrap_err().to_string();
        assert_eq!(said, format!("cannot read the image's /etc/passwd: is longer than {CAP} bytes"));
    }

    #[test]
    fn malformed_lines_are_ignored() {
        let (dir, root) = place("", "");
        fs::write(dir.path().join("etc/passwd"), b"\xff\xfe:x:1:1\n:::::\n:\n::0:0\0\nok:x:9:9::/h\r\n").unwrap();
        assert_eq!(resolve(&root, "ok").unwrap(), user(9, 9, &[9], "/h"));
    }
}
