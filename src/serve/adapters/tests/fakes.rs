//! A fleet and an engine, made of memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use tempfile::TempDir;

use super::super::*;
use crate::adapters::{self, CONFIG, Release, ServedName, WEIGHTS};
use crate::digest::ArtifactId;
use crate::proxy::BoxFuture;

pub(super) fn recorded(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters").join(name)
}

/// A published version of an adapter.
struct Published {
    directory: TempDir,
    signed: Signed,
}

#[derive(Default)]
struct World {
    published: Vec<Published>,
    looks: usize,
    looked_at: usize,
    opened: usize,
    fetched: usize,
    is_down: bool,
    /// One look does not find what was published last, and then it is all that there is.
    is_late: bool,
    fails: Option<String>,
    is_elsewhere: bool,
    foreign: BTreeMap<Alias, Foreign>,
    compared: usize,
    revoked: Option<ArtifactId>,
}

/// Adapters by alias, newest last.
pub(super) struct Fleet {
    world: Mutex<World>,
    /// Transfers wait while this is false.
    pub(super) flows: watch::Sender<bool>,
}

impl Fleet {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { world: Mutex::default(), flows: watch::Sender::new(true) })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The recorded adapter, its configuration followed by `variant` blanks: as many different contents.
    pub(super) fn publish(&self, alias: &str, generation: u64, variant: usize) -> Arc<Signed> {
        self.publish_changed(alias, generation, |directory, _| {
            let path = directory.join(CONFIG);
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(path, text + &" ".repeat(variant)).unwrap();
        })
    }

    pub(super) fn publish_changed(
        &self,
        alias: &str,
        generation: u64,
        change: impl FnOnce(&Path, &mut Release),
    ) -> Arc<Signed> {
        let directory = tempfile::tempdir().unwrap();
        for name in [CONFIG, WEIGHTS] {
            std::fs::copy(recorded("plain").join(name), directory.path().join(name)).unwrap();
        }
        let whole = adapters::Source::open(directory.path(), None).unwrap();
        let mut release = Release::of(&whole, alias.parse().unwrap(), "acme/tiny-llama-0.1b".parse().unwrap());
        change(directory.path(), &mut release);
        if let Ok(changed) = adapters::Source::open(directory.path(), None) {
            release.content = changed.content();
        }
        let signed = Signed {
            release,
            artifact: ArtifactId::of(format!("{alias} {generation}").as_bytes()),
            generation,
            created: UnixTime::from_seconds(generation),
            size: disk::bytes(directory.path()).unwrap(),
            signers: Vec::new(),
            keys: Vec::new(),
            envelope: Bytes::from(format!("{alias} {generation}")),
        };
        self.world().published.push(Published { directory, signed: signed.clone() });
        Arc::new(signed)
    }

    /// For another base model.
    /// Signs what was published last at another time.
    pub(super) fn sign_last_at(&self, seconds: u64) {
        if let Some(last) = self.world().published.last_mut() {
            last.signed.created = UnixTime::from_seconds(seconds);
        }
    }

    pub(super) fn publish_foreign(&self, alias: &str, base: &str, owner: Option<&str>) {
        let owner = owner.map(|owner| owner.parse().unwrap());
        let foreign = Foreign { base: base.parse().unwrap(), owner };
        self.world().foreign.insert(alias.parse().unwrap(), foreign);
    }

    /// Names that were asked about other base models.
    pub(super) fn compared(&self) -> usize {
        self.world().compared
    }

    pub(super) fn revoke(&self, artifact: ArtifactId) {
        self.world().revoked = Some(artifact);
    }

    /// Nobody has it any more.
    pub(super) fn is_down(&self, is_down: bool) {
        self.world().is_down = is_down;
    }

    pub(super) fn fails(&self, why: Option<&str>) {
        self.world().fails = why.map(str::to_owned);
    }

    /// What was published last is published between the next look and what follows from it.
    pub(super) fn last_comes_late(&self) {
        self.world().is_late = true;
    }

    pub(super) fn is_elsewhere(&self, is_elsewhere: bool) {
        self.world().is_elsewhere = is_elsewhere;
    }

    /// Manifests and transfers.
    pub(super) fn opened(&self) -> (usize, usize) {
        let world = self.world();
        (world.opened, world.fetched)
    }

    /// Look-ups, and names in them.
    pub(super) fn looks(&self) -> (usize, usize) {
        let world = self.world();
        (world.looks, world.looked_at)
    }
}

fn gone() -> FetchError {
    FetchError::Unavailable("nobody is there".to_owned())
}

struct Parcel {
    from: PathBuf,
    flows: watch::Receiver<bool>,
    fails: Option<String>,
}

impl Files for Parcel {
    fn write<'a>(
        mut self: Box<Self>,
        into: &'a Path,
        progress: &'a watch::Sender<Progress>,
    ) -> BoxFuture<'a, Result<(), FetchError>>
    where
        Self: 'a,
    {
        Box::pin(async move {
            self.flows.wait_for(|flows| *flows).await.unwrap();
            if let Some(why) = self.fails {
                std::fs::write(into.join("half"), "half").unwrap();
                return Err(FetchError::Unavailable(why));
            }
            for name in [CONFIG, WEIGHTS] {
                let bytes = std::fs::copy(self.from.join(name), into.join(name)).unwrap();
                progress.send_modify(|progress| progress.bytes += bytes);
            }
            Ok(())
        })
    }
}

impl Source for Fleet {
    fn look<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Sighting>, LookError>> {
        let mut world = self.world();
        world.looks += 1;
        world.looked_at += aliases.len();
        let newest = |alias: &Alias| {
            let mut of_alias = world.published.iter().rev().filter(|one| one.signed.release.alias == *alias);
            let Signed { artifact, generation, created, size, .. } = of_alias.nth(usize::from(world.is_late))?.signed;
            Some(Offer { artifact, content: None, generation, created, size, holders: 1 })
        };
        let found = if world.is_down {
            Err(LookError("the agent is away".to_owned()))
        } else {
            Ok(aliases.iter().map(|alias| Ok(newest(alias))).collect())
        };
        Box::pin(std::future::ready(found))
    }

    fn compare<'a>(&'a self, aliases: &'a [Alias]) -> BoxFuture<'a, Result<Vec<Option<Foreign>>, LookError>> {
        let mut world = self.world();
        world.compared += aliases.len();
        let of_others = aliases.iter().map(|alias| world.foreign.get(alias).cloned());
        let found =
            if world.is_down { Err(LookError("the agent is away".to_owned())) } else { Ok(of_others.collect()) };
        Box::pin(std::future::ready(found))
    }

    fn manifest<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Arc<Signed>, FetchError>> {
        let mut world = self.world();
        world.opened += 1;
        let late = std::mem::take(&mut world.is_late);
        let is_it = |one: &&Published| late || one.signed.artifact == *artifact;
        let one = world.published.iter().rev().find(is_it).filter(|_| !world.is_down);
        let signed = one.map(|one| Arc::new(one.signed.clone())).ok_or_else(gone);
        Box::pin(std::future::ready(signed))
    }

    fn open<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Delivery, FetchError>> {
        let mut world = self.world();
        // Files are asked for by alias: whatever was asked for, it is the newest that comes.
        let asked = world.published.iter().find(|one| one.signed.artifact == *artifact);
        let is_it =
            |one: &&Published| asked.is_some_and(|asked| asked.signed.release.alias == one.signed.release.alias);
        let of_alias = world.published.iter().filter(is_it);
        let newest = of_alias.max_by_key(|one| (one.signed.created, one.signed.generation));
        let one = newest.filter(|_| !world.is_down);
        let delivery = one.ok_or_else(gone).map(|one| Delivery {
            signed: Arc::new(one.signed.clone()),
            files: Box::new(Parcel {
                from: one.directory.path().to_owned(),
                flows: self.flows.subscribe(),
                fails: world.fails.clone(),
            }),
        });
        world.fetched += usize::from(delivery.is_ok());
        Box::pin(std::future::ready(delivery))
    }

    fn elsewhere<'a>(&'a self, _: &'a ArtifactId) -> BoxFuture<'a, bool> {
        Box::pin(std::future::ready(self.world().is_elsewhere))
    }

    fn is_revoked(&self, signed: &Signed) -> bool {
        self.world().revoked == Some(signed.artifact)
    }

    fn readmit(&self, envelope: &[u8]) -> Result<Signed, FetchError> {
        let world = self.world();
        let one = world.published.iter().find(|one| one.signed.envelope == envelope);
        one.map(|one| one.signed.clone()).ok_or_else(|| FetchError::NotAdmitted("nobody signed it".to_owned()))
    }
}

/// What an engine knows, and what it was asked.
#[derive(Default)]
pub(super) struct Engine {
    pub(super) loaded: Mutex<BTreeMap<String, PathBuf>>,
    pub(super) loads: Mutex<Vec<String>>,
    pub(super) unloads: Mutex<Vec<String>>,
    pub(super) refuses: Mutex<Option<RegistryError>>,
}

impl Engine {
    /// Reads an adapter's files, as engines do in the middle of a request: it would die if they were missing.
    pub(super) fn serve(&self, name: &str) {
        let directory = self.loaded.lock().unwrap().get(name).cloned();
        let directory = directory.unwrap_or_else(|| panic!("{name} is not registered"));
        assert!(directory.is_absolute() && directory.join(WEIGHTS).is_file(), "{name} has no files");
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.loaded.lock().unwrap().keys().cloned().collect()
    }

    pub(super) fn loads(&self) -> usize {
        self.loads.lock().unwrap().len()
    }
}

impl Registry for Engine {
    fn load<'a>(
        &'a self,
        _: u64,
        name: &'a ServedName,
        directory: &'a Path,
    ) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.loads.lock().unwrap().push(name.to_string());
        let refused = self.refuses.lock().unwrap().clone();
        let result = refused.map_or(Ok(()), Err);
        if result.is_ok() {
            let before = self.loaded.lock().unwrap().insert(name.to_string(), directory.to_owned());
            assert!(before.is_none_or(|before| before == directory), "{name} was loaded in place");
            self.serve(&name.to_string());
        }
        Box::pin(std::future::ready(result))
    }

    fn unload<'a>(&'a self, _: u64, name: &'a ServedName) -> BoxFuture<'a, Result<(), RegistryError>> {
        self.unloads.lock().unwrap().push(name.to_string());
        self.loaded.lock().unwrap().remove(&name.to_string());
        Box::pin(std::future::ready(Ok(())))
    }

    fn list(&self, _: u64) -> BoxFuture<'_, Result<Vec<Registered>, RegistryError>> {
        let loaded = self.loaded.lock().unwrap();
        let lines = loaded.iter().map(|(name, path)| Registered { name: name.clone(), directory: path.clone() });
        Box::pin(std::future::ready(Ok(lines.collect())))
    }
}
