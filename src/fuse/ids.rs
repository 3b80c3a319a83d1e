//! ID mapping: user and group IDs on disk versus those shown by a mount (`uidmapping=`, `squash_to_uid=`).

use crate::fs::Attr;

/// A map of user or group IDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// The ranges; if empty, every ID is shown unchanged.
    pub ranges: Vec<IdRange>,
    /// The ID to show for all files.
    pub squash: Option<u32>,
    /// The ID to show for an ID in no range.
    pub overflow: u32,
}

/// A range: `len` IDs on disk, starting at `disk`, are shown as IDs starting at `shown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "see above")]
pub struct IdRange {
    pub disk: u32,
    pub shown: u32,
    pub len: u32,
}

impl IdMap {
    /// Maps an ID on disk to the ID to show.
    pub fn shown(&self, id: u32) -> u32 {
        self.squash.unwrap_or_else(|| self.map(id, |range| (range.disk, range.shown)))
    }

    /// Maps a caller's ID, or an ID that a caller sets, to the ID on disk. Ignores `squash`.
    pub fn stored(&self, id: u32) -> u32 {
        self.map(id, |range| (range.shown, range.disk))
    }

    fn map(&self, id: u32, way: impl Fn(&IdRange) -> (u32, u32)) -> u32 {
        if self.ranges.is_empty() {
            return id;
        }
        let within = |range: &IdRange| {
            let (from, to) = way(range);
            id.checked_sub(from).filter(|offset| *offset < range.len).and_then(|offset| to.checked_add(offset))
        };
        self.ranges.iter().rev().find_map(within).unwrap_or(self.overflow)
    }

    /// Whether every ID is shown unchanged.
    fn is_plain(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }
}

/// The maps of user and group IDs.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids {
    pub users: IdMap,
    pub groups: IdMap,
}

/// ACL_USER and ACL_GROUP (linux/posix_acl.h): the tags of entries with an ID.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
const HEADER: usize = 4;
const ENTRY: usize = 8;

impl Ids {
    pub fn show(&self, attr: &Attr) -> Attr {
        Attr { uid: self.users.shown(attr.uid), gid: self.groups.shown(attr.gid), ..*attr }
    }

    /// Whether all files show the same owner. Then a failure to change the owner is no error of the caller.
    pub fn squashes(&self) -> bool {
        self.users.squash.is_some() || self.groups.squash.is_some()
    }

    /// Maps the IDs in an ACL's value to those to show; returns other attributes unchanged.
    pub fn show_value(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        self.each_id(name, value, IdMap::shown)
    }

    /// Maps the IDs in an ACL's value to those on disk; returns other attributes unchanged.
    pub fn store_value(&self, name: &[u8], value: Vec<u8>) -> Vec<u8> {
        self.each_id(name, value, IdMap::stored)
    }

    /// Whether values of that extended attribute contain IDs to map.
    pub fn concerns(&self, name: &[u8]) -> bool {
        name.starts_with(b"system.posix_acl_") && !(self.users.is_plain() && self.groups.is_plain())
    }

    fn each_id(&self, name: &[u8], mut value: Vec<u8>, map: impl Fn(&IdMap, u32) -> u32) -> Vec<u8> {
        if !self.concerns(name) {
            return value;
        }
        for entry in value.get_mut(HEADER..).unwrap_or_default().chunks_exact_mut(ENTRY) {
            let ids = match u16::from_le_bytes([entry[0], entry[1]]) {
                USER => &self.users,
                GROUP => &self.groups,
                _ => continue,
            };
            let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            entry[4..].copy_from_slice(&map(ids, id).to_le_bytes());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> IdMap {
        let range = |disk, shown, len| IdRange { disk, shown, len };
        IdMap { ranges: vec![range(0, 1000, 1), range(1, 110_000, 65_536)], squash: None, overflow: 65_534 }
    }

    #[test]
    fn ids_are_mapped_both_ways_and_others_overflow() {
        let map = map();
        for (disk, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!((map.shown(disk), map.stored(shown)), (shown, disk));
        }
        assert_eq!((map.shown(65_537), map.stored(0), map.stored(1001)), (65_534, 65_534, 65_534));
        assert_eq!((IdMap::default().shown(7), IdMap::default().stored(7)), (7, 7));
    }

    #[test]
    fn squash_applies_to_shown_ids_only() {
        let map = IdMap { squash: Some(5), ..map() };
        assert_eq!((map.shown(0), map.shown(77_777), map.stored(1000)), (5, 5, 0));
    }

    #[test]
    fn ids_in_acls_are_mapped() {
        let ids = Ids { users: map(), groups: IdMap::default() };
        let acl = |id: u32| {
            let entry = |tag: u16, id: u32| [&tag.to_le_bytes()[..], &7u16.to_le_bytes(), &id.to_le_bytes()].concat();
            [&2u32.to_le_bytes()[..], &entry(1, u32::MAX), &entry(USER, id), &entry(GROUP, 3)].concat()
        };
        let name = b"system.posix_acl_access";
        assert_eq!(ids.show_value(name, acl(0)), acl(1000));
        assert_eq!(ids.store_value(name, acl(1000)), acl(0));
        assert_eq!(ids.store_value(b"user.a", acl(1000)), acl(1000));
    }
}
