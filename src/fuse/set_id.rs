//! Set-ID bits: decides which of set-user-ID and set-group-ID a file keeps through a change. The kernel leaves that
//! to the server (FUSE_HANDLE_KILLPRIV_V2), which saves a getxattr request before each write. The rules are those of
//! `notify_change` and `setattr_should_drop_suidgid` in the kernel's fs/attr.c.

use super::caller::Caller;
use super::ids::Ids;
use crate::fs::{Attr, Change, Fs, FsError, Ino};
use crate::meta::Kind;

const SET_USER: u16 = 0o4000;
const SET_GROUP: u16 = 0o2000;
const GROUP_RUNS: u16 = 0o0010;

/// The kind of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    /// The data, or the size.
    Data,
    /// The owner or the group.
    Owner,
    /// Neither: chown(2) with -1 for both. It strips set-ID bits all the same, so only the owner may do it.
    NoOwner,
    /// The access ACL, and with it the mode.
    Acl,
}

impl Cause {
    /// Classifies a setattr request; `None` if it strips no bits. Ignores chmod(2): the kernel has checked the mode.
    fn of(change: &Change) -> Option<Cause> {
        let sets_times = change.atime.is_some() || change.mtime.is_some();
        match change {
            Change { uid: Some(_), .. } | Change { gid: Some(_), .. } => Some(Cause::Owner),
            Change { size: Some(_), .. } => Some(Cause::Data),
            Change { mode: Some(_), .. } => None,
            _ => (!sets_times).then_some(Cause::NoOwner),
        }
    }

    /// Tells two kinds of empty setattr requests apart. The kernel sends one before a write to a regular file, to
    /// strip the bits. chown(2) with -1 for both IDs sends one too, but for a regular file with a ctime. `checks`:
    /// the kernel checks permissions.
    fn resolved(self, change: &Change, kind: Kind, checks: bool) -> Cause {
        match self {
            Cause::NoOwner if kind == Kind::File && change.ctime.is_none() => Cause::Data,
            Cause::NoOwner if !checks => Cause::Owner,
            cause => cause,
        }
    }
}

/// The caller's relevant credentials.
trait Rights {
    /// Whether the caller is in the file's group, or its CAP_FSETID applies to the file.
    fn is_of_group(&self) -> bool;
    /// Whether the caller has CAP_FSETID in the initial user namespace.
    fn keeps_set_ids(&self) -> bool;
    /// Whether the caller owns the file, or its CAP_FOWNER applies to the file.
    fn owns(&self) -> bool;
}

/// Returns the mode without the bits to strip. EPERM if the caller may not strip them.
fn left(mode: u16, kind: Kind, cause: Cause, rights: &impl Rights) -> Result<u16, FsError> {
    let concerned = match cause {
        Cause::Data => kind == Kind::File,
        Cause::Owner | Cause::NoOwner => kind != Kind::Dir,
        Cause::Acl => true,
    };
    // Queries about the caller read /proc, so they are made only if the answer matters.
    let has = |bit: u16| concerned && mode & bit != 0;
    let loses_user = has(SET_USER) && cause != Cause::Acl;
    let runs = has(GROUP_RUNS) && cause != Cause::Acl;
    let loses_group = has(SET_GROUP) && (runs || !rights.is_of_group());
    if !loses_user && !loses_group || cause == Cause::Data && rights.keeps_set_ids() {
        return Ok(mode);
    }
    if cause == Cause::NoOwner && !rights.owns() {
        return Err(FsError::NotPermitted);
    }
    Ok(mode & !(if loses_user { SET_USER } else { 0 }) & !(if loses_group { SET_GROUP } else { 0 }))
}

/// A caller, and a file's owner and group as shown to it.
struct Of {
    caller: Caller,
    uid: u32,
    gid: u32,
    /// Whether the kernel has found that the caller lacks CAP_FSETID.
    is_judged: bool,
}

impl Rights for Of {
    fn is_of_group(&self) -> bool {
        self.caller.keeps_set_group(self.uid, self.gid)
    }

    fn keeps_set_ids(&self) -> bool {
        !self.is_judged && self.caller.keeps_set_ids()
    }

    fn owns(&self) -> bool {
        self.caller.owns(self.uid, self.gid)
    }
}

/// Who asks for changes: the caller, the IDs it is shown, and whether the kernel checks its permissions.
pub(super) struct Requester {
    pub ids: Ids,
    pub caller: Caller,
    pub checks: bool,
}

impl Requester {
    /// Strips the set-group-ID bit after the caller has set an inode's ACL, if the rules require it.
    pub fn strip_after_acl(&self, fs: &Fs, ino: Ino) -> Result<(), FsError> {
        let attr = fs.getattr(ino)?;
        strip(fs, &attr, Cause::Acl, &self.rights(&attr)).map(drop)
    }

    /// Strips set-ID bits before the caller's change of a file's data. `is_judged`: the kernel has found that the
    /// caller lacks CAP_FSETID. Returns whether bits were stripped.
    pub fn strip_before_write(&self, fs: &Fs, ino: Ino, is_judged: bool) -> Result<bool, FsError> {
        let attr = fs.getattr(ino)?;
        strip(fs, &attr, Cause::Data, &Of { is_judged, ..self.rights(&attr) })
    }

    /// Changes attributes and strips the set-ID bits that the change requires to strip.
    pub fn set_attributes(&self, fs: &Fs, ino: Ino, change: &Change) -> Result<Attr, FsError> {
        let squashes = self.ids.squashes() && (change.uid.is_some() || change.gid.is_some());
        let change = self.with_mode_left(fs, ino, change)?;
        match fs.setattr(ino, &change) {
            // All files show the same owner, so a failure to set the real one is ignored.
            Err(FsError::Io(_)) if squashes => fs.setattr(ino, &Change { uid: None, gid: None, ..change }),
            done => done,
        }
    }

    /// Adds the resulting mode to a change. The owner and group before the change decide.
    fn with_mode_left(&self, fs: &Fs, ino: Ino, change: &Change) -> Result<Change, FsError> {
        let Some(cause) = Cause::of(change) else { return Ok(*change) };
        let before = fs.getattr(ino)?;
        let cause = cause.resolved(change, before.kind, self.checks);
        // A kernel without FUSE_HANDLE_KILLPRIV_V2 names the mode itself.
        let mode = change.mode.map_or(before.mode, |mode| mode as u16);
        let left = left(mode, before.kind, cause, &self.rights(&before))?;
        Ok(if left == mode { *change } else { Change { mode: Some(left.into()), ..*change } })
    }

    fn rights(&self, attr: &Attr) -> Of {
        let (uid, gid) = (self.ids.users.shown(attr.uid), self.ids.groups.shown(attr.gid));
        Of { caller: self.caller, uid, gid, is_judged: false }
    }
}

fn strip(fs: &Fs, attr: &Attr, cause: Cause, rights: &Of) -> Result<bool, FsError> {
    let left = left(attr.mode, attr.kind, cause, rights)?;
    if left == attr.mode {
        return Ok(false);
    }
    fs.setattr(attr.ino, &Change { mode: Some(left.into()), ..Change::default() })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Member of the group, and root.
    struct Fixed(bool, bool);

    impl Rights for Fixed {
        fn is_of_group(&self) -> bool {
            self.0 || self.1
        }

        fn keeps_set_ids(&self) -> bool {
            self.1
        }

        fn owns(&self) -> bool {
            self.0 || self.1
        }
    }

    const STRANGER: Fixed = Fixed(false, false);
    const MEMBER: Fixed = Fixed(true, false);
    const ROOT: Fixed = Fixed(false, true);

    #[test]
    fn bits_go_and_stay_as_on_a_local_file_system() {
        use Cause::{Acl, Data, NoOwner, Owner};
        let left = |mode, kind, cause, rights: &Fixed| left(mode, kind, cause, rights).map_err(|e| e.to_string());
        let file = |mode, cause, rights: &Fixed| left(mode, Kind::File, cause, rights).unwrap();
        for (mode, cause, [stranger, member, root]) in [
            (0o6777, Data, [0o0777, 0o0777, 0o6777]),
            (0o6767, Data, [0o0767, 0o2767, 0o6767]),
            (0o4755, Data, [0o0755, 0o0755, 0o4755]),
            (0o2755, Data, [0o0755, 0o0755, 0o2755]),
            (0o6777, Owner, [0o0777, 0o0777, 0o0777]),
            (0o6767, Owner, [0o0767, 0o2767, 0o2767]),
            (0o2765, Owner, [0o0765, 0o2765, 0o2765]),
            (0o6777, Acl, [0o4777, 0o6777, 0o6777]),
            (0o6767, Acl, [0o4767, 0o6767, 0o6767]),
            (0o1755, Data, [0o1755; 3]),
            (0o0644, Owner, [0o0644; 3]),
        ] {
            let found = [&STRANGER, &MEMBER, &ROOT].map(|rights| file(mode, cause, rights));
            assert_eq!(found, [stranger, member, root], "{mode:o} {cause:?}");
        }
        assert_eq!(left(0o6777, Kind::Dir, Owner, &STRANGER), Ok(0o6777));
        assert_eq!(left(0o6777, Kind::Fifo, Owner, &STRANGER), Ok(0o0777));
        assert_eq!(left(0o6777, Kind::Fifo, Data, &STRANGER), Ok(0o6777));
        assert_eq!(left(0o2777, Kind::Dir, Acl, &STRANGER), Ok(0o0777));
        assert!(left(0o4777, Kind::File, NoOwner, &STRANGER).is_err());
        assert_eq!(left(0o0777, Kind::File, NoOwner, &STRANGER), Ok(0o0777));
        assert_eq!(left(0o6767, Kind::File, NoOwner, &MEMBER), Ok(0o2767));
    }

    #[test]
    fn what_a_change_is_of() {
        let change = Change { ctime: Some(Default::default()), ..Change::default() };
        let of = |change, kind| [true, false].map(|c| Cause::of(&change).map(|cause| cause.resolved(&change, kind, c)));
        let (file, fifo, nothing) = (Kind::File, Kind::Fifo, Change::default());
        assert_eq!(of(change, file), [Some(Cause::NoOwner), Some(Cause::Owner)]);
        assert_eq!(of(nothing, file), [Some(Cause::Data); 2], "the kernel, before a write");
        assert_eq!(of(nothing, fifo), [Some(Cause::NoOwner), Some(Cause::Owner)]);
        assert_eq!(of(Change { mode: Some(0), gid: Some(0), ..change }, file), [Some(Cause::Owner); 2]);
        assert_eq!(of(Change { mode: Some(0), ..change }, file), [None; 2]);
        assert_eq!(of(Change { size: Some(0), mode: Some(0), ..change }, file), [Some(Cause::Data); 2]);
        assert_eq!(of(Change { atime: Some(crate::fs::SetTime::Now), ..change }, file), [None; 2]);
    }
}
