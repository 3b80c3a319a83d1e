//! POSIX ACLs (acl(5)): inheritance ("OBJECT CREATION AND DEFAULT ACLs"), and the entries that correspond to mode bits
//! ("CORRESPONDENCE BETWEEN ACL ENTRIES AND FILE PERMISSION BITS").

/// The extended attribute of the access ACL.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute of a directory's default ACL, which new entries inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = 2u32.to_le_bytes();
/// The length of an ACL entry: tag, permissions, user or group ID.
const ENTRY: usize = 8;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An object's extended attributes.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// Computes mode and ACL attributes of an object created with `mode` in a directory with the default ACL `default`. An
/// ACL that a mode can express is left out. `None` if the ACL is malformed.
pub fn inherit(default: &[u8], mode: u32, is_dir: bool) -> Option<(u32, Attributes)> {
    let mut acl = default.to_vec();
    let mut given = mode & !0o777;
    each_shared(&mut acl, |shift, granted| {
        let granted = granted & (mode >> shift) & 7;
        given |= granted << shift;
        granted
    })?;
    let mut attributes = Vec::new();
    if !is_minimal(default) {
        attributes.push((ACCESS.to_vec(), acl));
    }
    if is_dir {
        attributes.push((DEFAULT.to_vec(), default.to_vec()));
    }
    Some((given, attributes))
}

/// Returns the mode `before` with the permission bits of an access ACL. `None` if the ACL is malformed.
pub fn mode(acl: &[u8], before: u32) -> Option<u32> {
    let mut mode = before & !0o777;
    each_shared(&mut acl.to_vec(), |shift, granted| {
        mode |= granted << shift;
        granted
    })?;
    Some(mode)
}

/// Whether a mode can express the whole ACL.
pub fn is_minimal(acl: &[u8]) -> bool {
    tags(acl).all(|tag| [USER_OBJ, GROUP_OBJ, OTHER].contains(&tag))
}

/// Applies the permission bits of a mode to an access ACL, as chmod(2) does. A malformed one is returned as it is.
pub fn with_mode(mut acl: Vec<u8>, mode: u32) -> Vec<u8> {
    each_shared(&mut acl, |shift, _| (mode >> shift) & 7);
    acl
}

fn tags(acl: &[u8]) -> impl Iterator<Item = u16> {
    acl.get(VERSION.len()..)
        .unwrap_or_default()
        .chunks_exact(ENTRY)
        .map(|entry| u16::from_le_bytes([entry[0], entry[1]]))
}

/// Replaces the permissions of the entries that correspond to mode bits: `new` gets the shift of the bits in the mode,
/// and the current permissions. `None` if the ACL is malformed.
fn each_shared(acl: &mut [u8], mut new: impl FnMut(u32, u32) -> u32) -> Option<()> {
    if acl.strip_prefix(&VERSION)?.len() % ENTRY != 0 {
        return None;
    }
    let has_mask = tags(acl).any(|tag| tag == MASK);
    for entry in acl[VERSION.len()..].chunks_exact_mut(ENTRY) {
        let shift = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJ => 6,
            GROUP_OBJ if !has_mask => 3,
            MASK => 3,
            OTHER => 0,
            _ => continue,
        };
        let granted = new(shift, u32::from(u16::from_le_bytes([entry[2], entry[3]])) & 7);
        entry[2..4].copy_from_slice(&(granted as u16).to_le_bytes());
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = VERSION.to_vec();
        for (tag, permissions) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(u32::MAX.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_minimal_acl_becomes_a_mode() {
        let default = acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]);
        assert_eq!(inherit(&default, 0o4666, false), Some((0o4640, vec![])));
        let (mode, attributes) = inherit(&default, 0o777, true).unwrap();
        assert_eq!((mode, attributes), (0o750, vec![(DEFAULT.to_vec(), default)]));
    }

    #[test]
    fn the_mask_stands_for_the_group() {
        let default = acl(&[(USER_OBJ, 7), (2, 7), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 5)]);
        let (mode, attributes) = inherit(&default, 0o660, false).unwrap();
        let expected = acl(&[(USER_OBJ, 6), (2, 7), (GROUP_OBJ, 5), (MASK, 6), (OTHER, 0)]);
        assert_eq!((mode, attributes), (0o660, vec![(ACCESS.to_vec(), expected)]));
    }

    #[test]
    fn an_acl_and_a_mode_follow_each_other() {
        let plain = acl(&[(USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 1)]);
        assert_eq!(mode(&plain, 0o4777), Some(0o4641));
        assert_eq!(with_mode(plain, 0o4750), acl(&[(USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)]));
        let masked = acl(&[(USER_OBJ, 6), (2, 7), (GROUP_OBJ, 1), (MASK, 5), (OTHER, 4)]);
        assert_eq!(mode(&masked, 0), Some(0o654));
        let narrowed = acl(&[(USER_OBJ, 7), (2, 7), (GROUP_OBJ, 1), (MASK, 2), (OTHER, 0)]);
        assert_eq!(with_mode(masked, 0o720), narrowed);
    }

    #[test]
    fn malformed_acls_are_rejected() {
        assert_eq!(inherit(b"", 0o644, false), None);
        assert_eq!(inherit(&[1, 0, 0, 0], 0o644, false), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644, false), None);
        assert_eq!(mode(&[2, 0, 0, 0, 1], 0o644), None);
        assert_eq!(with_mode(b"?".to_vec(), 0o644), b"?");
    }
}
