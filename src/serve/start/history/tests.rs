use super::*;
use crate::artifact::{Family, SourceIdentity};
use crate::digest::{ArtifactId, IdentityId};
use crate::durable;
use crate::serve::outlook::Prospect;
use crate::serve::warm::{self, ArtifactReport, Report};

/// A caches' root with a Triton cache: one entry that warmd installed, and one of the engine's own.
struct Node {
    root: tempfile::TempDir,
    environment: Environment,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let triton = root.path().join("triton").to_string_lossy().into_owned();
        let environment = [("TRITON_CACHE_DIR".to_owned(), triton)].into_iter().collect();
        let node = Self { root, environment };
        for entry in ["installed", "own"] {
            node.write(entry);
        }
        node
    }

    fn triton(&self) -> PathBuf {
        self.root.path().join("triton")
    }

    fn write(&self, entry: &str) {
        let directory = self.triton().join(entry);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("kernel.cubin"), entry).unwrap();
    }

    fn entries(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.triton()).unwrap().map(|item| item.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != crate::caches::CONTROL);
        names.sort();
        names
    }

    fn suspect(&self) -> Suspect {
        let entries = [RelPath::new("installed").unwrap()].into();
        Suspect { release: release(), root: self.triton(), entries, crashes: 0 }
    }

    fn history(&self) -> (History, String) {
        let mut lines = Vec::new();
        let history = History::read(self.root.path(), &self.environment, &mut lines);
        (history, lines.join("\n"))
    }

    /// Begins a start; what was said before.
    fn begin(&self, installed: Vec<Suspect>) -> (Kind, Record, String) {
        let (history, said) = self.history();
        let record = history.ledger.begin(installed).unwrap().unwrap();
        (history.start, record, said)
    }

    /// One whole start; what was said at its end.
    fn start(&self, installed: Vec<Suspect>, end: End) -> (Kind, String) {
        let (start, record, _) = self.begin(installed);
        (start, record.end(end, UnixTime::from_seconds(1_800_000_000)).unwrap().lines.join("\n"))
    }

    fn record(&self) -> PathBuf {
        self.root.path().join(crate::caches::CONTROL).join(FILE)
    }
}

fn release() -> Release {
    Release {
        artifact: ArtifactId::of(b"artifact"),
        family: "triton".to_owned(),
        identity: IdentityId::of(b"identity"),
        subject: String::new(),
        generation: 3,
        signers: vec!["ci".to_owned()],
    }
}

#[test]
fn after_two_crashes_only_what_was_installed_is_taken_away_and_a_clean_start_that_works_quarantines_it() {
    let node = Node::new();
    assert_eq!(node.start(vec![node.suspect()], End::Crashed), (Kind::Warm, String::new()));
    assert_eq!(node.start(Vec::new(), End::Crashed), (Kind::Warm, String::new()));
    assert_eq!(node.entries(), ["installed", "own"]);

    let (start, record, said) = node.begin(Vec::new());
    assert_eq!(start, Kind::Clean);
    assert_eq!(node.entries(), ["own"]);
    let id = ArtifactId::of(b"artifact");
    let expected = format!("crashed twice after these were installed: starting clean: {} (triton)", id.short());
    assert!(said.contains(&expected), "{said}");
    let said = record.end(End::Ready, UnixTime::from_seconds(1_800_000_000)).unwrap().lines.join("\n");
    assert!(said.starts_with("quarantined: ") && said.contains("generation 3 by ci"), "{said}");
    assert!(said.ends_with(&format!("`warmd quarantine clear {id}`")), "{said}");

    let (history, said) = node.history();
    assert_eq!((history.start, said.as_str()), (Kind::Warm, ""));
    assert_eq!(history.quarantine.refuses(&release()).unwrap().release, release());
    assert!(!node.record().exists());
}

#[test]
fn a_clean_start_that_crashes_too_quarantines_nothing_and_says_so() {
    let node = Node::new();
    node.start(vec![node.suspect()], End::Crashed);
    node.start(Vec::new(), End::Crashed);
    let (start, said) = node.start(Vec::new(), End::Crashed);
    assert_eq!(start, Kind::Clean);
    assert!(said.contains("may be installed again"), "{said}");
    let (history, _) = node.history();
    assert_eq!(history.start, Kind::Warm);
    assert!(history.quarantine.list().is_empty());
}

#[test]
fn what_is_installed_just_as_warmd_is_killed_is_suspect_at_the_next_start() {
    let node = Node::new();
    let (history, _) = node.history();
    let entries = ["installed", "never-came"].map(|entry| RelPath::new(entry).unwrap()).into();
    history.witness().before_commit(release(), &node.triton(), entries).unwrap();
    // No more is heard of that process.
    drop(history);
    assert!(node.record().exists());
    node.start(Vec::new(), End::Crashed);
    node.start(Vec::new(), End::Crashed);
    let (start, _, said) = node.begin(Vec::new());
    assert_eq!((start, node.entries()), (Kind::Clean, vec!["own".to_owned()]));
    assert!(said.contains("taken away: 1 entries"), "{said}");
}

#[tokio::test]
async fn nothing_is_installed_any_more_once_the_engine_is_started() {
    let node = Node::new();
    let (history, _) = node.history();
    let witness = history.witness();
    let say: Say = Arc::new(|_: &str| ());
    let current = history.begin(&[], &say).await;
    let late = witness.before_commit(release(), &node.triton(), [RelPath::new("installed").unwrap()].into());
    assert!(late.is_err());
    current.end(End::Crashed, &say).await;
    assert!(!node.record().exists(), "and it is no suspect");
}

#[test]
fn a_process_that_is_gone_without_a_word_counts_as_a_crash() {
    let node = Node::new();
    for installed in [vec![node.suspect()], Vec::new()] {
        drop(node.begin(installed));
    }
    assert_eq!(node.history().0.start, Kind::Clean);
}

#[test]
fn a_start_on_another_boot_is_no_crash() {
    let node = Node::new();
    node.start(vec![node.suspect()], End::Crashed);
    drop(node.begin(Vec::new()));
    let text = durable::read_record(&node.record()).unwrap().unwrap();
    let boot = BootId::current().unwrap().to_string();
    assert!(text.contains(&boot));
    let other = text.replace(&boot, "00000000-0000-4000-8000-000000000000");
    durable::replace_record(&node.record(), &other, 0o600).unwrap();
    assert_eq!(node.history().0.start, Kind::Warm);
}

#[test]
fn of_two_engines_that_start_at_once_only_the_first_has_the_record() {
    let node = Node::new();
    node.start(vec![node.suspect()], End::Crashed);
    node.start(Vec::new(), End::Crashed);
    let (start, record, _) = node.begin(Vec::new());
    let (beside, said) = node.history();
    assert_eq!((start, beside.start), (Kind::Clean, Kind::Clean), "what the first goes without is not brought back");
    assert!(beside.ledger.begin(Vec::new()).unwrap().is_none());
    assert!(said.contains("another engine"), "{said}");
    record.end(End::Ready, UnixTime::from_seconds(0)).unwrap();
    assert!(!node.history().1.contains("another engine"));
}

#[test]
fn a_start_with_nothing_installed_leaves_no_record() {
    let node = Node::new();
    let (_, record, _) = node.begin(Vec::new());
    assert!(!node.record().exists());
    drop(record);
    assert_eq!(node.history().1, "");
}

#[test]
fn a_damaged_record_is_as_good_as_none() {
    let node = Node::new();
    node.start(vec![node.suspect()], End::Crashed);
    node.start(Vec::new(), End::Crashed);
    let text = std::fs::read_to_string(node.record()).unwrap();
    std::fs::write(node.record(), text.replace("installed", "own")).unwrap();
    assert_eq!(node.history().0.start, Kind::Warm);
    assert_eq!(node.entries(), ["installed", "own"]);
}

#[test]
fn a_root_that_the_engine_does_not_use_any_more_stays_as_it_is() {
    let node = Node::new();
    let mut elsewhere = node.suspect();
    elsewhere.root = node.root.path().to_owned();
    elsewhere.entries = [RelPath::new("triton").unwrap()].into();
    node.start(vec![elsewhere], End::Crashed);
    node.start(Vec::new(), End::Crashed);
    assert_eq!(node.history().0.start, Kind::Clean);
    assert_eq!(node.entries(), ["installed", "own"]);
}

#[test]
fn suspects_that_cannot_be_taken_away_are_not_quarantined() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    node.start(vec![node.suspect()], End::Crashed);
    node.start(Vec::new(), End::Crashed);
    // No cache root of ours, so nothing is touched in it.
    std::fs::set_permissions(node.triton(), PermissionsExt::from_mode(0o777)).unwrap();
    let (start, record, said) = node.begin(Vec::new());
    assert_eq!(start, Kind::Clean, "nothing is installed all the same");
    assert!(said.contains("could not be taken away"), "{said}");
    assert!(record.end(End::Ready, UnixTime::from_seconds(0)).unwrap().lines.is_empty());
    assert!(node.history().0.quarantine.list().is_empty());
}

#[tokio::test]
async fn a_root_that_cannot_be_written_costs_the_quarantine_and_not_the_start() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    std::fs::write(&file, "").unwrap();
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let say: Say = Arc::new(move |line: &str| heard.lock().unwrap().push(line.to_owned()));
    let history = History::of(&file, &Environment::default(), Duration::from_secs(60), &say).await;
    assert_eq!(history.start, Kind::Warm);
    let current = history.begin(&[], &say).await;
    current.end(End::Crashed, &say).await;
    let said = said.lock().unwrap().join("\n");
    assert!(said.contains("nothing will be quarantined"), "{said}");
}

#[test]
fn only_entries_that_came_are_suspect() {
    let identity = SourceIdentity::new(Family::directory(), [("torch".to_owned(), "2".to_owned())].into()).unwrap();
    let family = CacheFamily::by_name("triton").unwrap();
    let mut warmed = Warmed::new(Prospect { family, root: "/cache/triton".into(), identity: identity.clone() }, 2);
    let path = |text: &str| RelPath::new(text).unwrap();
    let artifact = |id: &[u8], added: &[&str]| ArtifactReport {
        artifact: ArtifactId::of(id),
        subject: "model".to_owned(),
        generation: 3,
        signers: vec!["ci".to_owned()],
        installed: added.len(),
        existing: 1,
        in_the_way: Vec::new(),
        files: 1,
        bytes: 1,
        wire_bytes: 1,
        reused_bytes: 0,
        holders: 1,
        entries: vec![path("before"), path("came")],
        added: added.iter().map(|text| path(text)).collect(),
        attributes: BTreeMap::new(),
    };
    warmed.report = Some(Report {
        remembered: false,
        verdict: warm::Verdict::Installed,
        artifacts: vec![artifact(b"new", &["came"]), artifact(b"known", &[])],
        admitted: Vec::new(),
        quarantined: Vec::new(),
        lock_seconds: 0.0,
        lookup_seconds: 0.0,
        fetch_seconds: 0.0,
        install_seconds: 0.0,
        total_seconds: 0.0,
    });
    let found: Vec<Suspect> = suspects(&warmed).collect();
    let expected =
        Release { artifact: ArtifactId::of(b"new"), identity: identity.id(), subject: "model".to_owned(), ..release() };
    assert_eq!(
        found,
        [Suspect { release: expected, root: "/cache/triton".into(), entries: [path("came")].into(), crashes: 0 }]
    );
}
