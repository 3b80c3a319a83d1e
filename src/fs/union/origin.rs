//! Where what the lower layers have shows through: the way from a number to the names that can be seen.

use super::Union;
use crate::fs::lower::Name;
use crate::fs::union::table::What;
use crate::fs::{FsError, Ino, ROOT};

impl Union {
    /// The names under which an inode of the image, which the upper directory does not have yet, shows through.
    pub(super) fn visible_names(&self, ino: Ino) -> Result<Vec<(Ino, Name)>, FsError> {
        let (names, all) = self.names_now(ino)?;
        if all || self.all_loaded.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(names);
        }
        // A directory may have been moved to where nobody has looked yet.
        self.load_all()?;
        Ok(self.names_now(ino)?.0)
    }

    /// The visible names, and whether they are all that the image has.
    fn names_now(&self, ino: Ino) -> Result<(Vec<(Ino, Name)>, bool), FsError> {
        let (mut visible, mut all) = (Vec::new(), true);
        for (dir, name) in self.lower.names(ino)? {
            if self.shows(dir)? && self.slot(dir, &name)?.is_none() {
                visible.push((dir, name));
            } else {
                all = false;
            }
        }
        Ok((visible, all))
    }

    /// Whether a directory of the image is seen, wherever it is now, with what the image has in it.
    fn shows(&self, dir: Ino) -> Result<bool, FsError> {
        if let Some(entry) = self.table().get(dir) {
            return Ok(!entry.is_removed() && entry.dir.as_ref().is_some_and(|d| d.lower == Some(dir)));
        }
        if dir == ROOT {
            return Ok(true);
        }
        let parent = self.lower.parent(dir)?;
        if !self.shows(parent)? {
            return Ok(false);
        }
        Ok(match self.slot(parent, &self.lower.dir_name(dir)?)? {
            None => true,
            Some(What::Inode(found)) => found == dir,
            Some(What::Whiteout) => false,
        })
    }

    /// What a directory's part of the upper has under a name.
    fn slot(&self, dir: Ino, name: &[u8]) -> Result<Option<What>, FsError> {
        self.ensure_loaded(dir)?;
        Ok(self.table().names(dir).and_then(|names| names.get(name)))
    }
}
