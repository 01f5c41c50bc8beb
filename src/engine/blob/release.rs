//! The end of a blob: found dead by a sweep, and unlinked.

use std::io;

use super::file::{Alone, is_held, is_none_of_ours, open_alone};
use super::{Blob, Blobs, Life, Naming};
use crate::error::{Error, Result};
use crate::sys::step;

impl Blobs {
    /// The blobs that no word names and that no process holds, which might be about to name them.
    /// They stay until they are [`release`](Blobs::release)d.
    pub(crate) fn take_dead(&self, index: &impl Naming) -> Vec<u128> {
        let mut dead = Vec::new();
        for (name, blob) in &mut self.lock().blobs {
            // Looked up each time: a write that cannot be synced is undone, and the blob that it
            // replaced is named again.
            let life = blob.look(*name, index).and_then(|is_named| match blob.life {
                _ if is_named => Ok(Life::Alive),
                Life::Dead => Ok(Life::Dead),
                Life::Alive | Life::Kept => self.look_closer(*name, blob, index),
            });
            blob.life = life.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot look up whether a blob is named; it is kept");
                Life::Alive
            });
            if blob.life == Life::Dead {
                dead.push(*name);
            }
        }
        dead
    }

    /// The state of a blob that no known owner names.
    fn look_closer(&self, name: u128, blob: &mut Blob, index: &impl Naming) -> Result<Life> {
        let path = self.path(name);
        let opened =
            self.storage().open_to_read(&path).and_then(|file| Ok((is_held(&file)?, file)));
        let (is_held, file) = match opened {
            Ok(opened) => opened,
            // There is no such file to keep.
            Err(e) if is_none_of_ours(&e) => return Ok(Life::Dead),
            Err(e) => return Err(Error::io("open blob", &path, e)),
        };
        // After `is_held`: a process that released it in between has published its word by now, or
        // never will.
        Ok(match (blob.look_again(name, &file, index)?, is_held) {
            (true, _) => Life::Alive,
            (false, true) => Life::Kept,
            (false, false) => Life::Dead,
        })
    }

    /// Unlinks those of the `dead` blobs that no process holds and no word names: with the file
    /// locked, no process can begin to name it. The others stay. Returns the number unlinked.
    pub(crate) fn release(&self, dead: &[u128], index: &impl Naming) -> usize {
        if dead.is_empty() {
            return 0;
        }
        step!("blob::releasing");
        let removed = dead.iter().filter(|name| self.release_one(**name, index)).count();
        step!("blob::released");
        removed
    }

    fn release_one(&self, name: u128, index: &impl Naming) -> bool {
        let path = self.path(name);
        let opened =
            open_alone(self.storage(), &path).map_err(|e| Error::io("open blob", &path, e));
        let alone = opened.and_then(|alone| {
            let mut known = self.lock();
            let Some(blob) = known.blobs.get_mut(&name) else { return Ok(None) };
            match alone {
                Alone::Yes(file) if blob.look_again(name, &file, index)? => blob.life = Life::Alive,
                Alone::Yes(file) => return Ok(Some((file, blob.bytes))),
                Alone::Held => blob.life = Life::Kept,
                Alone::Gone => drop(known.blobs.remove(&name)),
            }
            Ok(None)
        });
        match alone {
            Ok(Some((file, bytes))) => {
                step!("blob::alone");
                if !self.remove(name) {
                    return false;
                }
                // The file system frees the blocks when the last descriptor is closed.
                drop(file);
                self.space.blob_gone(bytes);
                self.lock().blobs.remove(&name);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a dead blob");
                false
            }
        }
    }

    /// Unlinks the file of a blob that the caller holds. If that fails, the blob stays, and counts.
    pub(super) fn remove(&self, name: u128) -> bool {
        let path = self.path(name);
        match self.held.check_in_place().and_then(|()| self.storage().remove(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "cannot remove a blob");
                false
            }
            _ => true,
        }
    }
}
