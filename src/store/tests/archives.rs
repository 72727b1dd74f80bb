use std::io::Read;

use super::*;

fn exported(store: &Store, artifact: &Artifact) -> Vec<u8> {
    let mut archive = Vec::new();
    let written = store.export(&artifact.id(), &mut archive).unwrap();
    assert_eq!(written, archive.len() as u64);
    archive
}

fn import(store: &Store, mut archive: &[u8]) -> Result<ArtifactId, ArchiveError> {
    store.import(&mut archive, &admit)
}

/// An archive of three chunks, and where its members begin.
fn sample() -> (Vec<u8>, [usize; 5]) {
    let (_directory, store) = store();
    let artifact = fetched(&store, &[noise(1, 700), noise(2, 512), noise(3, 1)], 1);
    let archive = exported(&store, &artifact);
    let first = 512 + artifact.signed().envelope().len().next_multiple_of(512);
    (archive, [0, first, first + 1536, first + 2560, first + 3584])
}

fn refused(store: &Store, archive: &[u8]) -> ArchiveError {
    let error = import(store, archive).unwrap_err();
    assert!(store.list().is_empty() && store.usage() == 0, "nothing is added: {error}");
    error
}

/// Overwrites a part of a header and makes its checksum right again.
fn forge(archive: &mut [u8], header: usize, at: usize, bytes: &[u8]) {
    let block = &mut archive[header..header + 512];
    block[at..at + bytes.len()].copy_from_slice(bytes);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[test]
fn an_archive_round_trips_and_is_the_same_every_time() {
    let (_directory, from) = store();
    let piece = noise(1, 300_000);
    let artifact = fetched(&from, &[piece.clone(), noise(2, 10), noise(3, 2048)], 1);
    let archive = exported(&from, &artifact);
    assert_eq!(exported(&from, &artifact), archive);
    let (_directory, to) = store();
    assert_eq!(import(&to, &archive).unwrap(), artifact.id());
    let arrived = to.get(&artifact.id()).unwrap();
    assert_eq!((arrived.state(), arrived.role()), (State::Complete, Role::Fetched));
    assert_eq!(arrived.signed(), artifact.signed());
    assert_readable(&to, &arrived);
    assert_eq!(exported(&to, &arrived), archive);
    import(&to, &archive).unwrap();
}

#[test]
fn golden_bytes_of_a_header() {
    let (archive, places) = sample();
    let mut expected = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| expected[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, format!("chunks/{}", Digest::of(&noise(1, 700))).as_bytes());
    put(100, b"0000644\0"); // mode
    put(108, b"0000000\0"); // uid
    put(116, b"0000000\0"); // gid
    put(124, b"00000001274\0"); // size: 700
    put(136, b"00000000000\0"); // mtime
    put(156, b"0"); // regular file
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = expected.iter().map(|byte| u32::from(*byte)).sum();
    expected[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    assert_eq!(archive[places[1]..places[1] + 512], expected);
    assert_eq!(&archive[..20], b"warmd-manifest.dsse\0");
    assert_eq!(archive[places[4]..], [0; 1024]);
}

#[test]
fn standard_tar_reads_an_archive() {
    let (archive, _) = sample();
    let mut reader = tar::Archive::new(&archive[..]);
    let mut names = Vec::new();
    for entry in reader.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let name = entry.path().unwrap().display().to_string();
        if let Some(digest) = name.strip_prefix("chunks/") {
            assert_eq!(Digest::of(&content).to_string(), digest);
        }
        names.push(name);
    }
    assert_eq!(names.len(), 4);
    assert_eq!(names[0], "warmd-manifest.dsse");
}

#[test]
fn every_cut_is_refused() {
    let (_directory, store) = store();
    let (archive, _) = sample();
    for end in (0..archive.len()).step_by(37) {
        let error = refused(&store, &archive[..end]);
        assert!(matches!(error, ArchiveError::Truncated), "cut at {end}: {error}");
    }
}

#[test]
fn every_flipped_byte_is_refused() {
    let (archive, _) = sample();
    let (_directory, store) = store();
    for at in 0..archive.len() {
        let mut damaged = archive.clone();
        damaged[at] ^= 0x10;
        assert!(import(&store, &damaged).is_err(), "byte {at} flipped");
        assert!(store.list().is_empty() && store.usage() == 0, "byte {at} flipped and something was added");
    }
    import(&store, &archive).unwrap();
}

#[test]
fn members_in_another_order_and_extra_ones_are_refused() {
    let (_directory, store) = store();
    let (archive, [_, first, second, third, end]) = sample();
    let part = |from: usize, to: usize| archive[from..to].to_vec();
    let swapped = [part(0, first), part(second, third), part(first, second), part(third, archive.len())].concat();
    let doubled = [part(0, second), part(first, archive.len())].concat();
    let extra = [part(0, end), part(first, second), part(end, archive.len())].concat();
    let lacking = [part(0, third), part(end, archive.len())].concat();
    let late = [part(first, second), part(0, first), part(second, archive.len())].concat();
    let trailing = [archive.clone(), part(first, second)].concat();
    let twice = [archive.clone(), archive.clone()].concat();
    for hostile in [swapped, doubled, extra, lacking, late, trailing, twice] {
        let error = refused(&store, &hostile);
        assert!(matches!(error, ArchiveError::Unexpected { .. }), "{error}");
    }
}

#[test]
fn links_devices_extensions_other_names_and_sizes_are_refused() {
    let (_directory, store) = store();
    let (archive, [manifest, first, ..]) = sample();
    let name = Digest::of(&noise(1, 700)).to_string();
    let types = [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0"];
    let mut forgeries: Vec<(usize, &[u8])> = types.iter().map(|kind| (156, &kind[..])).collect();
    let upward = format!("../{name}\0\0\0\0");
    forgeries.extend([
        (0, upward.as_bytes()),
        (0, b"/etc/passwd\0"),
        (100, b"0004755\0"),
        (124, b"00000001275\0"),
        (124, b"\x80\0\0\0\0\0\0\0\0\0\x02\xbc"),
        (136, b"00000000001\0"),
        (157, b"/etc/passwd"),
        (257, b"ustar  \0"),
        (265, b"root"),
        (345, b"prefix"),
    ]);
    for (at, bytes) in forgeries {
        for header in [manifest, first] {
            let mut hostile = archive.clone();
            forge(&mut hostile, header, at, bytes);
            let error = refused(&store, &hostile);
            let changes_size = header == manifest && at == 124;
            assert!(matches!(error, ArchiveError::Unexpected { .. }) || changes_size, "{at} {bytes:?}: {error}");
        }
    }
}

#[test]
fn a_manifest_that_claims_to_be_huge_is_refused_before_it_is_read() {
    let (_directory, store) = store();
    let mut archive = sample().0;
    let size = 0o77_777_777_777;
    archive[..512].copy_from_slice(&crate::store::archive::header("warmd-manifest.dsse", size));
    assert!(matches!(refused(&store, &archive), ArchiveError::ManifestTooLarge(found) if found == size));
}

#[test]
fn an_archive_by_a_signer_that_nobody_trusts_is_refused() {
    let (_directory, from) = store();
    let contents = [noise(1, 100)];
    put(&from, &contents);
    let draft = signed(&contents, 1).manifest().clone();
    let stranger = SignedManifest::sign((*draft).clone(), &PrivateKey::from_seed(2)).unwrap();
    let artifact = from.insert_published(stranger).unwrap();
    let (_directory, store) = store();
    assert!(matches!(refused(&store, &exported(&from, &artifact)), ArchiveError::Manifest(ManifestError::Refused(_))));
}

#[test]
fn a_bad_archive_takes_nothing_away_from_an_artifact_that_was_there() {
    let (archive, places) = sample();
    let (_directory, store) = store();
    let contents = [noise(1, 700), noise(2, 512), noise(3, 1)];
    let held = store.begin(admitted(&contents, 1)).unwrap();
    put(&store, &contents[2..]);
    drop(held);
    let mut damaged = archive.clone();
    damaged[places[2] + 512] ^= 1;
    assert!(matches!(import(&store, &damaged), Err(ArchiveError::Damaged(_))));
    assert_eq!(store.list()[0].have().ones().collect::<Vec<_>>(), [0, 2]);
    import(&store, &archive).unwrap();
}

#[test]
fn only_complete_artifacts_are_exported() {
    let (_directory, store) = store();
    let contents = contents(1, 2, 100);
    let held = store.begin(admitted(&contents, 1)).unwrap();
    put(&store, &contents[..1]);
    let error = store.export(&held.id(), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ArchiveError::Store(StoreError::Incomplete { missing: 1, .. })), "{error}");
}
