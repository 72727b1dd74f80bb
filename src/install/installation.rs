//! One install of one artifact: begin, chunks, commit.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::dir::{DIR_MODE, Dir, set_mtime};
use super::layout::{TREE, is_reserved};
use super::marker::{BootId, InstalledMarker, Marker};
use super::place::Place;
use super::plan::{Part, Plan, split};
use super::relocated::Relocated;
use super::staging::Staging;
use super::{At, CacheRoot, InstallError, InstallLock, fault};
use crate::artifact::{Admitted, Bitmap, Chunk, Codec, Decoder, File, FileHasher, Manifest, RelPath, piece_value};
use crate::caches::check_kind;
use crate::digest::Digest;

/// What an installation may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file system that stay free whatever happens (I5).
    pub reserve_bytes: u64,
    /// Bytes that one installation may write.
    pub max_bytes: u64,
}

/// What a commit did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    pub installed: Vec<RelPath>,
    /// Entries that were there before or came in the meantime; they win and were not looked into.
    pub existing: Vec<RelPath>,
    /// Entries in whose place there is something else: a link, or a file where a directory belongs. It stays as it is.
    pub in_the_way: Vec<RelPath>,
    /// Files and their bytes in the entries that were installed.
    pub files: u64,
    pub bytes: u64,
}

/// Dropped without a commit it leaves nothing behind. Blocking calls: use it from blocking threads.
pub struct Installation<'r> {
    root: &'r CacheRoot,
    admitted: Arc<Admitted>,
    limits: Limits,
    plan: Plan,
    existing: Vec<RelPath>,
    in_the_way: Vec<RelPath>,
    staging: Staging<'r>,
    /// [`WAITING`], [`BUSY`] or [`DONE`] for each chunk. One that failed half way stays busy, so nothing is committed.
    states: Vec<AtomicU8>,
    /// For each of the plan's cuts: the digests of its pieces so far.
    cuts: Vec<Mutex<FileHasher>>,
    decoders: Mutex<Vec<Decoder>>,
    relocated: Relocated,
}

const WAITING: u8 = 0;
const BUSY: u8 = 1;
const DONE: u8 = 2;

impl<'r> Installation<'r> {
    /// Looks what is missing and whether there is room, and makes the staging directory. `_lock` is of this root and
    /// outlives the installation.
    pub fn begin(
        root: &'r CacheRoot,
        _lock: &'r InstallLock,
        admitted: Arc<Admitted>,
        limits: Limits,
    ) -> Result<Self, InstallError> {
        let manifest = admitted.manifest();
        if let Some(entry) = manifest.entries.iter().find(|entry| is_reserved(entry)) {
            return Err(InstallError::Reserved(entry.clone()));
        }
        check_kind(manifest)?;
        let Place { missing, existing, in_the_way } = Place::of(root, manifest)?;
        let plan = Plan::new(manifest, missing);
        check_empty_files(manifest, &plan)?;
        let relocated = Relocated::new(root, manifest)?;
        if plan.bytes > limits.max_bytes {
            return Err(InstallError::TooLarge { wanted: plan.bytes, limit: limits.max_bytes });
        }
        check_room(root, limits, plan.disk_bytes, plan.files)?;
        let staging = Staging::new(root)?;
        let states = manifest.chunks.iter().map(|_| AtomicU8::new(WAITING)).collect();
        let hasher =
            |files: &[usize]| Mutex::new(FileHasher::new(files.first().map_or(0, |f| manifest.files[*f].size)));
        let cuts = plan.cut.iter().map(|cut| hasher(&cut.files)).collect();
        let decoders = Mutex::default();
        Ok(Self { root, limits, plan, existing, in_the_way, staging, states, cuts, decoders, relocated, admitted })
    }

    /// Chunks that the missing entries need.
    pub fn needed(&self) -> &Bitmap {
        &self.plan.needed
    }

    /// Files and bytes that the missing entries have.
    pub fn size(&self) -> (u64, u64) {
        (self.plan.files, self.plan.bytes)
    }

    /// Entries that a commit makes visible.
    pub fn missing(&self) -> impl Iterator<Item = &RelPath> {
        self.plan.missing.iter().map(|index| &self.admitted.manifest().entries[*index])
    }

    /// Takes the encoded bytes of one chunk, from any thread, in any order. One that is not needed or was given before is
    /// ignored. After [`InstallError::Corrupt`] the same chunk can be given again; other errors end the installation.
    pub fn chunk(&self, index: usize, encoded: &[u8]) -> Result<(), InstallError> {
        if !self.plan.needed.get(index) || !self.advance(index, WAITING, BUSY) {
            return Ok(());
        }
        let pooled = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let decoder = pooled.map_or_else(Decoder::new, Ok);
        let mut decoder = decoder.map_err(|_| InstallError::Corrupt { index })?;
        let decoded = self.verify(index, encoded, &mut decoder);
        let written = match decoded {
            Ok(decoded) => self.write(index, decoded).map(|()| self.advance(index, BUSY, DONE)),
            Err(error) => {
                self.advance(index, BUSY, WAITING);
                Err(error)
            }
        };
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        written.map(|_| ())
    }

    fn advance(&self, index: usize, from: u8, to: u8) -> bool {
        self.states[index].compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The decoded chunk, once all files that lie wholly in it have their digests.
    fn verify<'a>(&self, index: usize, encoded: &'a [u8], decoder: &'a mut Decoder) -> Result<&'a [u8], InstallError> {
        let corrupt = || InstallError::Corrupt { index };
        let manifest = self.admitted.manifest();
        let Chunk { digest, encoded_len, decoded_len, codec } = manifest.chunks[index];
        // The digests of the files cover a raw chunk; what goes into the zstd decoder is verified first.
        if encoded.len() != encoded_len as usize || (codec == Codec::Zstd && Digest::of(encoded) != digest) {
            return Err(corrupt());
        }
        let decoded = decoder.decode(codec, encoded, decoded_len as usize).map_err(|_| corrupt())?;
        for part in self.plan.parts_of(index).map(|equal| &equal[0]).filter(|part| part.cut.is_none()) {
            if Digest::of(bytes_of(decoded, part)) != manifest.files[part.file as usize].digest {
                return Err(corrupt());
            }
        }
        Ok(decoded)
    }

    fn write(&self, index: usize, decoded: &[u8]) -> Result<(), InstallError> {
        check_room(self.root, self.limits, decoded.len() as u64, 0)?;
        let files = &self.admitted.manifest().files;
        let mut above = None;
        let mut parent: Option<(&str, Dir)> = None;
        for part in self.plan.parts_of(index).flatten() {
            let file = &files[part.file as usize];
            let directory = split(file).0;
            let dir = match parent.take() {
                Some((open, dir)) if open == directory => dir,
                _ => self.staged_below(&mut above, directory)?,
            };
            let bytes = self.relocated.expand(self.admitted.manifest(), file, bytes_of(decoded, part))?;
            write_part(&dir, file, part, &bytes)
                .map_err(|errno| InstallError::io("write", self.staged(file), errno))?;
            parent = Some((directory, dir));
        }
        for part in self.plan.parts_of(index).map(|equal| &equal[0]) {
            if let Some(cut) = part.cut {
                self.finish_piece(cut as usize, part, bytes_of(decoded, part))?;
            }
        }
        Ok(())
    }

    /// Whoever brings the last piece compares the digest; every piece was written before it was counted here.
    fn finish_piece(&self, cut: usize, part: &Part, bytes: &[u8]) -> Result<(), InstallError> {
        let value = piece_value(part.in_file, bytes);
        let mut hasher = self.cuts[cut].lock().unwrap_or_else(PoisonError::into_inner);
        hasher.set(part.in_file, value);
        let Some(digest) = hasher.finish() else {
            return Ok(());
        };
        drop(hasher);
        for index in &self.plan.cut[cut].files {
            let file = &self.admitted.manifest().files[*index];
            if file.digest != digest {
                return Err(InstallError::CorruptFile { path: file.path.clone() });
            }
            if file.mtime_ns != 0 {
                let (directory, name) = split(file);
                let dir = self.staged_directory(directory)?;
                dir.open_or_create(name, mode_of(file))
                    .and_then(|open| set_mtime(&open, file.mtime_ns))
                    .map_err(|errno| InstallError::io("set time of", self.staged(file), errno))?;
            }
        }
        Ok(())
    }

    fn staged_directory(&self, directory: &str) -> Result<Dir, InstallError> {
        self.staging.tree.open_or_make(directory, DIR_MODE).at("make", &self.staging.path().join(TREE), directory)
    }

    /// [`Installation::staged_directory`] for one after the other: the directory above stays open in `above`.
    fn staged_below<'p>(&self, above: &mut Option<(&'p str, Dir)>, directory: &'p str) -> Result<Dir, InstallError> {
        let Some((path, name)) = directory.rsplit_once('/') else { return self.staged_directory(directory) };
        let (_, dir) = match above.take() {
            Some((open, dir)) if open == path => above.insert((open, dir)),
            _ => above.insert((path, self.staged_directory(path)?)),
        };
        dir.make_or_open(name, DIR_MODE).at("make", &self.staging.path().join(TREE), directory)
    }

    /// For messages.
    fn staged(&self, file: &File) -> PathBuf {
        self.staging.path().join(TREE).join(file.path.as_str())
    }

    /// Makes the missing entries visible, each in one step. On an error some may be visible already, whole; a second
    /// installation finds them as existing.
    pub fn commit(self) -> Result<Installed, InstallError> {
        let done = |index: &usize| self.states[*index].load(Ordering::Acquire) == DONE;
        let missing = self.plan.needed.ones().filter(|index| !done(index)).count();
        if missing > 0 {
            return Err(InstallError::Incomplete { missing });
        }
        for index in &self.plan.empty {
            let file = &self.admitted.manifest().files[*index];
            let (directory, name) = split(file);
            let dir = self.staged_directory(directory)?;
            create(&dir, name, file, &[]).map_err(|errno| InstallError::io("make", self.staged(file), errno))?;
        }
        // All that can find the disk full comes before the first rename.
        let identity = self.admitted.manifest().identity.id();
        let before = self.root.marker(&identity)?;
        let marker = InstalledMarker::adding(self.admitted.id(), BootId::current()?, self.root.scope(), before);
        self.root.stage_marker(&self.staging, &Marker::Installed(marker))?;
        let parents = self.make_parents()?;
        self.staging.dir.sync_file_system().at("sync", &self.staging.path(), "")?;
        let renamed = self.rename_entries();
        for parent in parents {
            let dir = self.root.dir.open(parent).at("open", self.root.path(), parent)?;
            dir.sync().at("sync", self.root.path(), parent)?;
        }
        let (installed, came_between) = renamed?;
        self.root.place_marker(&self.staging, &identity)?;
        Ok(self.summary(installed, came_between))
    }

    /// The directories that hold the missing entries, and those above.
    fn make_parents(&self) -> Result<BTreeSet<&str>, InstallError> {
        let mut parents = BTreeSet::new();
        for entry in self.missing() {
            let mut path = entry.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                if !parents.insert(parent) {
                    break;
                }
                path = parent;
            }
            parents.insert("");
        }
        for parent in &parents {
            self.root.dir.open_or_make(parent, DIR_MODE).at("make", self.root.path(), parent)?;
        }
        Ok(parents)
    }

    /// Entries that were renamed, and those that somebody else put there since [`Installation::begin`].
    fn rename_entries(&self) -> Result<(Vec<RelPath>, Vec<RelPath>), InstallError> {
        let (mut installed, mut existing) = (Vec::new(), Vec::new());
        let mut open: Option<(&str, Dir, Dir)> = None;
        for entry in self.missing() {
            let (parent, name) = entry.as_str().rsplit_once('/').unwrap_or(("", entry.as_str()));
            let (from, to) = match open.take() {
                Some((held, from, to)) if held == parent => (from, to),
                _ => {
                    let from = self.staging.tree.open(parent).at("open", &self.staging.path(), parent)?;
                    (from, self.root.dir.open(parent).at("open", self.root.path(), parent)?)
                }
            };
            match from.rename_new(name, &to, name) {
                Ok(()) => installed.push(entry.clone()),
                Err(Errno::EXIST) => existing.push(entry.clone()),
                Err(errno) => return Err(InstallError::io("commit", self.root.path().join(entry.as_str()), errno)),
            }
            open = Some((parent, from, to));
        }
        Ok((installed, existing))
    }

    fn summary(self, installed: Vec<RelPath>, came_between: Vec<RelPath>) -> Installed {
        let manifest = self.admitted.manifest();
        let (mut files, mut bytes) = (0, 0);
        for file in &manifest.files {
            if manifest.entry_of(&file.path).is_some_and(|entry| installed.binary_search(entry).is_ok()) {
                files += 1;
                bytes += file.size;
            }
        }
        let mut existing = self.existing;
        existing.extend(came_between);
        existing.sort_unstable();
        Installed { installed, existing, in_the_way: self.in_the_way, files, bytes }
    }
}

fn bytes_of<'a>(decoded: &'a [u8], part: &Part) -> &'a [u8] {
    &decoded[part.begin as usize..part.end as usize]
}

fn mode_of(file: &File) -> Mode {
    Mode::from_raw_mode(if file.executable { 0o755 } else { 0o644 })
}

fn write_part(dir: &Dir, file: &File, part: &Part, bytes: &[u8]) -> rustix::io::Result<()> {
    let name = split(file).1;
    if part.cut.is_none() {
        return create(dir, name, file, bytes);
    }
    let open = dir.open_or_create(name, mode_of(file))?;
    fault::point()?;
    open.write_all_at(bytes, part.in_file).map_err(errno_of)
}

fn create(dir: &Dir, name: &str, file: &File, bytes: &[u8]) -> rustix::io::Result<()> {
    let mut open = dir.create(name, mode_of(file))?;
    fault::point()?;
    open.write_all(bytes).map_err(errno_of)?;
    if file.mtime_ns != 0 { set_mtime(&open, file.mtime_ns) } else { Ok(()) }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Nothing else ever hashes them.
fn check_empty_files(manifest: &Manifest, plan: &Plan) -> Result<(), InstallError> {
    let digest = Digest::of(b"");
    let wrong = plan.empty.iter().map(|index| &manifest.files[*index]).find(|file| file.digest != digest);
    wrong.map_or(Ok(()), |file| Err(InstallError::CorruptFile { path: file.path.clone() }))
}

fn check_room(root: &CacheRoot, limits: Limits, wanted: u64, files: u64) -> Result<(), InstallError> {
    let (free, inodes) = root.dir.room(files).at("look at", root.path(), "")?;
    if free < limits.reserve_bytes.saturating_add(wanted) || !inodes {
        return Err(InstallError::NoSpace { path: root.path().to_owned(), wanted });
    }
    Ok(())
}
