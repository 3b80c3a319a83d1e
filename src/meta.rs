//! Kind, mode bits, time and device number of a file system entry.

/// The kinds of file, as the type bits of `st_mode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// The type bits of `st_mode` (inode(7)).
pub const TYPE_BITS: u32 = 0o170_000;
/// Permission, set-id and sticky bits.
pub const PERMISSION_BITS: u32 = 0o7777;

impl Kind {
    /// The kind's `S_IF*` bits.
    pub fn bits(self) -> u32 {
        match self {
            Kind::Dir => 0o040_000,
            Kind::File => 0o100_000,
            Kind::Symlink => 0o120_000,
            Kind::Char => 0o020_000,
            Kind::Block => 0o060_000,
            Kind::Fifo => 0o010_000,
            Kind::Socket => 0o140_000,
        }
    }

    /// Returns the kind of a mode; `None` if its type bits are invalid.
    pub fn of(mode: u32) -> Option<Kind> {
        let all = [Kind::Dir, Kind::File, Kind::Symlink, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket];
        all.into_iter().find(|kind| kind.bits() == mode & TYPE_BITS)
    }
}

/// A point in time: seconds from the epoch, negative before it, and nanoseconds after that second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    /// Seconds.
    pub sec: i64,
    /// 0 to 999,999,999.
    pub nsec: u32,
}

/// Encodes a device number in Linux's 32-bit form (`new_encode_dev`), which FUSE uses: 12 bits of major, 20 of minor.
/// `None` if a part does not fit, as no Linux system can have such a device.
pub fn device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Returns the major and the minor number of a [`device`].
pub fn device_parts(number: u32) -> (u32, u32) {
    ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xfff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_modes_agree() {
        for kind in [Kind::Dir, Kind::File, Kind::Symlink, Kind::Char, Kind::Block, Kind::Fifo, Kind::Socket] {
            assert_eq!(Kind::of(kind.bits() | 0o7777), Some(kind));
        }
        assert_eq!(Kind::of(0o644), None);
    }

    #[test]
    fn device_numbers_are_the_kernels() {
        assert_eq!(device(1, 3), Some(0x103));
        assert_eq!(device(0xfff, 0xfffff), Some(0xffff_ffff));
        assert_eq!(device(1 << 12, 0), None);
        assert_eq!(device(0, 1 << 20), None);
        for parts in [(1, 3), (0xfff, 0xfffff), (8, 0x12345)] {
            assert_eq!(device(parts.0, parts.1).map(device_parts), Some(parts));
        }
    }
}
