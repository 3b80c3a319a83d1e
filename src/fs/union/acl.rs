//! POSIX ACLs that a directory hands down (acl(5), "OBJECT CREATION AND DEFAULT ACLs").

/// The attribute that decides about access.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The attribute that a directory's new entries inherit.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: [u8; 4] = 2u32.to_le_bytes();
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An object's extended attributes.
type Attributes = Vec<(Vec<u8>, Vec<u8>)>;

/// The mode of an object made with `mode` in a directory with the default ACL `default`, and the attributes that it
/// gets. An ACL that says no more than a mode can is left out. `None` if the ACL is malformed.
pub fn inherit(default: &[u8], mode: u32, is_dir: bool) -> Option<(u32, Attributes)> {
    let mut acl = default.to_vec();
    let entries = acl.strip_prefix(&VERSION)?.len();
    if entries % 8 != 0 {
        return None;
    }
    let tags: Vec<u16> = default[4..].chunks_exact(8).map(|e| u16::from_le_bytes([e[0], e[1]])).collect();
    let has_mask = tags.contains(&MASK);
    let mut given = mode & !0o777;
    for (tag, entry) in tags.iter().zip(acl[4..].chunks_exact_mut(8)) {
        let shift = match *tag {
            USER_OBJ => 6,
            GROUP_OBJ if !has_mask => 3,
            MASK => 3,
            OTHER => 0,
            _ => continue,
        };
        let granted = u32::from(u16::from_le_bytes([entry[2], entry[3]])) & (mode >> shift) & 7;
        entry[2..4].copy_from_slice(&(granted as u16).to_le_bytes());
        given |= granted << shift;
    }
    let mut attributes = Vec::new();
    if tags.iter().any(|tag| ![USER_OBJ, GROUP_OBJ, OTHER].contains(tag)) {
        attributes.push((ACCESS.to_vec(), acl));
    }
    if is_dir {
        attributes.push((DEFAULT.to_vec(), default.to_vec()));
    }
    Some((given, attributes))
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
    fn a_minimal_acl_is_a_mode() {
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
    fn nonsense_is_refused() {
        assert_eq!(inherit(b"", 0o644, false), None);
        assert_eq!(inherit(&[1, 0, 0, 0], 0o644, false), None);
        assert_eq!(inherit(&[2, 0, 0, 0, 1], 0o644, false), None);
    }
}
