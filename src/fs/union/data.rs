//! Data of the union's files: read, write, data copy-up, truncate, fallocate, copy_file_range, lseek and fsync.

use super::Union;
use super::inode_table::Data;
use crate::backing::{Handle, read_exact};
use crate::fs::lower_types::Piece;
use crate::fs::{FsError, Ino};
use crate::meta::Time;
use crate::upper::timestamps;
use crate::whiteout::Mark;
use rustix::io::Errno;
use std::borrow::Cow;
use std::os::fd::AsFd;

const MISSING: FsError = FsError::Damaged("no layer has the file's data");
/// The most bytes that one copy call copies.
const CHUNK: u64 = 8 << 20;
/// The most bytes that one read returns.
const MAX_READ: u32 = 1 << 20;

impl Union {
    /// [`crate::fs::Fs::read`].
    pub fn read(&self, ino: Ino, offset: u64, size: u32) -> Result<Cow<'_, [u8]>, FsError> {
        self.is_file(ino)?;
        match self.data_of(ino) {
            None => self.lower.read(ino, offset, size),
            Some(Data::Lower(origin, end)) => {
                let size = u64::from(size).min(end.saturating_sub(offset));
                self.lower.read(origin, offset, size as u32)
            }
            Some(Data::Missing) => Err(MISSING),
            Some(Data::Upper) => {
                let handle = self.handle(ino)?;
                let most = size.min(MAX_READ) as usize;
                Ok(Cow::Owned(self.upper.backing().read_most(handle.as_fd(), offset, most)?))
            }
        }
    }

    /// [`crate::fs::Fs::write`].
    pub fn write(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.is_file(ino)?;
        let handle = self.own_data(ino)?;
        let locks = self.locks_of(ino)?;
        {
            let _nobody_sets_them = locks.privileges.read();
            if !self.may_be_capable(ino) {
                return self.upper.write_all(handle.as_fd(), bytes, offset).map_err(|e| self.note_lost_write(e));
            }
        }
        let _alone = locks.privileges.write();
        let capabilities = self.capabilities(ino, &handle)?;
        self.upper.write_all(handle.as_fd(), bytes, offset).map_err(|e| self.note_lost_write(e))?;
        self.restore_capabilities(&handle, capabilities)
    }

    /// [`crate::fs::Fs::write_back`].
    pub fn write_back(&self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<(), FsError> {
        self.write(ino, offset, bytes)?;
        self.keep_mtime(ino);
        Ok(())
    }

    /// [`crate::fs::Fs::kernel_mtime`].
    pub fn kernel_mtime(&self, ino: Ino) -> Option<Time> {
        {
            let table = self.table();
            let entry = table.get(ino).filter(|entry| entry.raw.is_some())?;
            if entry.kernel_mtime.is_some() || !self.is_resumed() {
                return entry.kernel_mtime;
            }
        }
        // What the kernel told an earlier server has been written to disk.
        let mtime = self.upper.backing().stat(self.handle(ino).ok()?.as_fd()).ok()?.mtime;
        self.set_kernel_mtime(ino, mtime);
        Some(mtime)
    }

    /// [`crate::fs::Fs::set_kernel_mtime`].
    pub fn set_kernel_mtime(&self, ino: Ino, mtime: Time) {
        if let Some(entry) = self.table_mut().get_mut(ino) {
            entry.kernel_mtime = Some(mtime);
        }
    }

    /// [`crate::fs::Fs::keep_mtime`].
    pub fn keep_mtime(&self, ino: Ino) {
        let Some(known) = self.table().get(ino).and_then(|entry| entry.kernel_mtime) else { return };
        let times = timestamps(None, Some(known));
        let kept = self.handle(ino).and_then(|handle| Ok(self.upper.backing().utimens(handle.as_fd(), &times)?));
        if let Err(e) = kept {
            tracing::warn!("cannot restore the modification time of inode {ino} after writeback: {e}");
        }
    }

    /// Records a failed write, so that a later sync of a volatile mount fails too: for a disk that fails, not for one
    /// that is full.
    fn note_lost_write(&self, error: std::io::Error) -> FsError {
        if Errno::from_io_error(&error) == Some(Errno::IO) {
            self.upper.note_failure();
            if let Some(handover) = &self.handover {
                handover.set_lost_write();
            }
        }
        error.into()
    }

    /// Whether a change of this file's data would first copy much of it up.
    pub fn is_slow_to_write(&self, ino: Ino) -> bool {
        match self.data_of(ino) {
            None => self.lower.getattr(ino).is_ok_and(|attr| attr.size > 0),
            Some(data) => data != Data::Upper,
        }
    }

    /// Copies a file's data up, and returns its descriptor.
    fn own_data(&self, ino: Ino) -> Result<Handle, FsError> {
        self.copy_up_whole(ino)?;
        self.writable_handle(ino)
    }

    /// Copies up to `keep` bytes of a file's data to the upper. Returns whether the file was cut short. Until the data
    /// is complete and on disk, the lower layer's data is used.
    pub(super) fn copy_data(&self, ino: Ino, keep: u64) -> Result<bool, FsError> {
        let locks = self.locks_of(ino)?;
        let _copying = locks.change.lock();
        let (origin, end) = match self.data_of(ino) {
            Some(Data::Lower(origin, end)) => (origin, end),
            Some(Data::Missing) => return Err(MISSING),
            Some(Data::Upper) | None => return Ok(false),
        };
        let handle = self.writable_handle(ino)?;
        let _alone = locks.privileges.write();
        let keep = keep.min(end);
        let before = self.upper.backing().stat(handle.as_fd())?;
        let capabilities = self.capabilities(ino, &handle)?;
        let cut = keep < before.size;
        if cut {
            self.upper.backing().truncate(handle.as_fd(), keep)?;
        }
        let copied = self.copy_pieces(origin, keep, &handle).and_then(|()| {
            self.restore_capabilities(&handle, capabilities.clone())?;
            if keep > 0 {
                self.upper.sync(handle.as_fd(), true)?;
            }
            if !cut {
                self.upper.backing().utimens(handle.as_fd(), &timestamps(None, Some(before.mtime)))?;
            }
            Ok(self.upper.clear_mark(handle.as_fd(), Mark::Metacopy)?)
        });
        if let Err(e) = copied {
            // Size and times are attributes, which the upper has already.
            self.upper.backing().truncate(handle.as_fd(), before.size)?;
            self.restore_capabilities(&handle, capabilities)?;
            self.upper.backing().utimens(handle.as_fd(), &timestamps(None, Some(before.mtime)))?;
            return Err(e);
        }
        if let Err(e) = self.upper.clear_mark(handle.as_fd(), Mark::Redirect) {
            tracing::warn!("cannot remove the redirect mark of inode {ino}: {e}");
        }
        if let Some(entry) = self.table_mut().get_mut(ino) {
            entry.data = Data::Upper;
        }
        Ok(cut)
    }

    pub(super) fn copy_pieces(&self, origin: Ino, keep: u64, to: &Handle) -> Result<(), FsError> {
        for piece in self.lower.pieces(origin)? {
            let len = piece.len.min(keep.saturating_sub(piece.logical));
            self.copy_piece(&piece, len, to)?;
        }
        Ok(())
    }

    /// Copies within the kernel, or by sharing extents (reflink), where the file system supports it.
    fn copy_piece(&self, piece: &Piece, len: u64, to: &Handle) -> Result<(), FsError> {
        let mut done = 0;
        while done < len {
            let chunk = (len - done).min(CHUNK) as usize;
            let (from, at) = (piece.offset + done, piece.logical + done);
            let copied = self.upper.backing().copy(piece.file.as_fd(), from, to.as_fd(), at, chunk);
            match copied {
                Ok(0) => return Err(FsError::Damaged("a file's data lies outside of its layer")),
                Ok(more) => {
                    done += more as u64;
                    if done < len {
                        self.upper.begin_sync(to.as_fd(), at, more as u64);
                    }
                }
                Err(e) if cannot_copy(&e) => return self.copy_through_buffer(piece, done, len, to),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn copy_through_buffer(&self, piece: &Piece, mut done: u64, len: u64, to: &Handle) -> Result<(), FsError> {
        let mut buffer = vec![0; (len - done).min(1 << 20) as usize];
        while done < len {
            let part = (len - done).min(buffer.len() as u64) as usize;
            read_exact(piece.file.as_fd(), &mut buffer[..part], piece.offset + done)?;
            self.upper.write_all(to.as_fd(), &buffer[..part], piece.logical + done)?;
            done += part as u64;
        }
        Ok(())
    }

    /// Truncates or extends a file. Data that is cut off is not copied up first.
    pub(super) fn truncate(&self, ino: Ino, size: u64) -> Result<(), FsError> {
        if self.data_of(ino) != Some(Data::Upper) && self.copy_data(ino, size)? {
            return Ok(());
        }
        let handle = self.writable_handle(ino)?;
        Ok(self.upper.backing().truncate(handle.as_fd(), size)?)
    }

    /// [`crate::fs::Fs::fallocate`].
    pub fn fallocate(&self, ino: Ino, mode: u32, offset: u64, len: u64) -> Result<(), FsError> {
        self.is_file(ino)?;
        let handle = self.own_data(ino)?;
        Ok(self.upper.backing().allocate(handle.as_fd(), mode, offset, len)?)
    }

    /// [`crate::fs::Fs::copy_range`].
    pub fn copy_range(&self, from: Ino, at: u64, to: Ino, to_at: u64, len: u64) -> Result<u64, FsError> {
        self.is_file(from)?;
        self.is_file(to)?;
        let target = self.own_data(to)?;
        if self.data_of(from) != Some(Data::Upper) {
            let bytes = self.read(from, at, len.min(MAX_READ.into()) as u32)?;
            self.upper.write_all(target.as_fd(), &bytes, to_at).map_err(|e| self.note_lost_write(e))?;
            return Ok(bytes.len() as u64);
        }
        let source = self.handle(from)?;
        let len = len.min(CHUNK) as usize;
        let copied = self.upper.backing().copy(source.as_fd(), at, target.as_fd(), to_at, len);
        Ok(copied.map_err(|e| self.note_lost_write(e))? as u64)
    }

    /// [`crate::fs::Fs::seek`].
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        self.is_file(ino)?;
        match self.data_of(ino) {
            None => self.lower.seek(ino, offset, hole),
            Some(Data::Lower(origin, _)) => self.lower.seek(origin, offset, hole),
            Some(Data::Missing) => Err(MISSING),
            Some(Data::Upper) => Ok(self.upper.backing().seek(self.handle(ino)?.as_fd(), offset, hole)?),
        }
    }

    /// [`crate::fs::Fs::fsync`].
    pub fn fsync(&self, ino: Ino, data_only: bool) -> Result<(), FsError> {
        let up = self.table().get(ino).is_some_and(|entry| entry.raw.is_some());
        if !up {
            return Ok(());
        }
        let handle = self.handle(ino)?;
        match self.upper.sync(handle.as_fd(), data_only) {
            // An O_PATH descriptor: the inode has no data, and fsync of its directory covers the name.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::BADF) => Ok(()),
            synced => Ok(synced?),
        }
    }
}

fn cannot_copy(error: &std::io::Error) -> bool {
    use Errno as E;
    matches!(Errno::from_io_error(error), Some(E::XDEV | E::INVAL | E::OPNOTSUPP | E::NOSYS | E::PERM))
}
