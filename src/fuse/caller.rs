//! Caller credentials from /proc: groups, capabilities and user namespace, which a FUSE request does not contain. They
//! decide whether a file keeps its set-ID bits through a change.

use crate::sys::{self, INITIAL_USER_NAMESPACE};
use fuser::Request;
use std::fs;

/// CAP_FSETID (linux/capability.h): keep set-ID bits through changes by non-members of the file's group.
const CAP_FSETID: u32 = 4;
/// CAP_FOWNER: act as the owner of any file.
const CAP_FOWNER: u32 = 3;
/// The user that is assumed to have all capabilities if /proc does not show the caller.
const ROOT: u32 = 0;

/// The thread that made a request and waits for the reply.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pid: u32,
    uid: u32,
    gid: u32,
}

impl Caller {
    pub fn of(request: &Request) -> Caller {
        Caller { pid: request.pid(), uid: request.uid(), gid: request.gid() }
    }

    /// Returns the text of `/proc/PID/status`, with groups and capabilities. `None` if the caller has no PID in this
    /// PID namespace, or if it is a server thread (nfsd, io_uring) that acts with other credentials than its own.
    fn status(&self) -> Option<String> {
        let text = fs::read_to_string(sys::proc_dir(self.pid)?.join("status")).ok()?;
        // The fields are real, effective, saved and file system ID; the request has the last.
        let acts_as =
            |name, id: u32| field(&text, name)?.split_whitespace().nth(3)?.parse().ok().map(|own: u32| own == id);
        (acts_as("Uid", self.uid)? && acts_as("Gid", self.gid)?).then_some(text)
    }

    /// Whether the caller is in the group, or its CAP_FSETID applies to files of that user and group: the kernel's
    /// condition for keeping the set-group-ID bit (`in_group_or_capable`).
    pub fn keeps_set_group(&self, uid: u32, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let Some(status) = self.status() else { return self.uid == ROOT };
        is_in_group(&status, gid) || has_capability(&status, CAP_FSETID) && self.capabilities_apply_to(uid, gid)
    }

    /// Whether set-ID bits stay when the caller writes: it has CAP_FSETID in the initial user namespace.
    pub fn keeps_set_ids(&self) -> bool {
        let Some(status) = self.status() else { return self.uid == ROOT };
        let namespace = fs::read_link(format!("/proc/{}/ns/user", self.pid));
        let is_initial = namespace.is_ok_and(|namespace| namespace.as_os_str() == INITIAL_USER_NAMESPACE);
        has_capability(&status, CAP_FSETID) && is_initial
    }

    /// Whether the caller is that user, or its CAP_FOWNER applies to files of that user and group
    /// (`inode_owner_or_capable`).
    pub fn owns(&self, uid: u32, gid: u32) -> bool {
        if self.uid == uid {
            return true;
        }
        let Some(status) = self.status() else { return self.uid == ROOT };
        has_capability(&status, CAP_FOWNER) && self.capabilities_apply_to(uid, gid)
    }

    /// Whether the caller's capabilities apply to files of that user and group: in another user namespace only if
    /// both IDs are mapped there (`capable_wrt_inode_uidgid`).
    fn capabilities_apply_to(&self, uid: u32, gid: u32) -> bool {
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/user")).ok();
        let (own, pid) = (namespace("self"), self.pid.to_string());
        if own.is_some() && namespace(&pid) == own {
            return true;
        }
        let has = |map: &str, id: u32| {
            fs::read_to_string(format!("/proc/{pid}/{map}")).is_ok_and(|ranges| is_mapped(&ranges, id))
        };
        has("uid_map", uid) && has("gid_map", gid)
    }
}

/// Returns the value of a field of `/proc/PID/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn is_in_group(status: &str, gid: u32) -> bool {
    field(status, "Groups").is_some_and(|groups| groups.split_whitespace().any(|group| group.parse() == Ok(gid)))
}

fn has_capability(status: &str, capability: u32) -> bool {
    let effective = field(status, "CapEff").and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_some_and(|set| set >> capability & 1 == 1)
}

/// Whether an ID of this user namespace is mapped by the lines of `/proc/PID/uid_map` (user_namespaces(7)).
fn is_mapped(ranges: &str, id: u32) -> bool {
    ranges.lines().any(|range| {
        let mut numbers = range.split_whitespace().skip(1).map_while(|number| number.parse::<u32>().ok());
        match (numbers.next(), numbers.next()) {
            (Some(first), Some(count)) => id.checked_sub(first).is_some_and(|offset| offset < count),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_capabilities_are_parsed_from_status() {
        let status = "Name:\tsh\nGid:\t5\t5\t5\t5\nGroups:\t4 24 2000 \nCapEff:\t0000000000000010\n";
        assert!(is_in_group(status, 24) && is_in_group(status, 2000) && !is_in_group(status, 200));
        assert!(has_capability(status, CAP_FSETID) && !has_capability(status, 3));
        let none = "Groups:\t \nCapEff:\t000001ffffffffef\n";
        assert!(!is_in_group(none, 0) && !has_capability(none, CAP_FSETID));
    }

    #[test]
    fn id_maps_of_user_namespaces_are_parsed() {
        let ranges = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(
            [999, 1000, 1001, 100_000, 165_535, 165_536].map(|id| is_mapped(ranges, id)),
            [false, true, false, true, true, false]
        );
        assert!(is_mapped("0 0 4294967295\n", 7) && !is_mapped("", 0));
    }
}
