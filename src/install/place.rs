//! What is in a cache root where a manifest's entries belong.

use rustix::fs::FileType;
use rustix::io::Errno;

use super::dir::Dir;
use super::{At, CacheRoot, InstallError};
use crate::artifact::{Manifest, RelPath};

/// What is in the place of a manifest's entries.
#[derive(Default)]
pub(super) struct Place {
    /// Indices of those of which nothing is there, ascending.
    pub(super) missing: Vec<usize>,
    pub(super) existing: Vec<RelPath>,
    pub(super) in_the_way: Vec<RelPath>,
}

impl Place {
    /// An error if there is something else in the place of every entry.
    pub(super) fn of(root: &CacheRoot, manifest: &Manifest) -> Result<Self, InstallError> {
        let mut place = Self::default();
        let mut open: Option<(&str, Option<Dir>)> = None;
        for (index, entry) in manifest.entries.iter().enumerate() {
            let (parent, name) = entry.as_str().rsplit_once('/').unwrap_or(("", entry.as_str()));
            let dir = match open.take() {
                Some((held, dir)) if held == parent => dir,
                _ => match root.dir.open(parent) {
                    Err(Errno::NOENT) => None,
                    opened => Some(opened.at("open", root.path(), parent)?),
                },
            };
            let kind =
                dir.as_ref().map_or(Ok(None), |dir| dir.kind(name)).at("look at", root.path(), entry.as_str())?;
            match kind {
                None => place.missing.push(index),
                Some(kind) if kind == belongs(manifest, entry) => place.existing.push(entry.clone()),
                Some(_) => place.in_the_way.push(entry.clone()),
            }
            open = Some((parent, dir));
        }
        match place.in_the_way.first() {
            Some(entry) if place.in_the_way.len() == manifest.entries.len() => {
                let wanted = if belongs(manifest, entry) == FileType::Directory { "directory" } else { "regular file" };
                Err(InstallError::InTheWay { path: root.path().join(entry.as_str()), wanted })
            }
            _ => Ok(place),
        }
    }
}

fn belongs(manifest: &Manifest, entry: &RelPath) -> FileType {
    match manifest.files.binary_search_by(|file| file.path.cmp(entry)) {
        Ok(_) => FileType::RegularFile,
        Err(_) => FileType::Directory,
    }
}
