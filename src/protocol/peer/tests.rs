use proptest::prelude::*;

use super::*;
use crate::identity::PrivateKey;

fn split(frame: &Bytes) -> ([u8; FRAME_HEAD], &[u8]) {
    let head: [u8; FRAME_HEAD] = frame[..FRAME_HEAD].try_into().unwrap();
    assert_eq!(body_len(head).unwrap(), frame.len() - FRAME_HEAD);
    (head, &frame[FRAME_HEAD..])
}

fn ask(request: Request, port: Option<u16>) -> Traced {
    Traced { request, port: port.and_then(NonZeroU16::new), traceparent: String::new() }
}

#[test]
fn the_port_of_the_asker_comes_back() {
    for port in [None, Some(4780)] {
        let asked = ask(Request::Have(ArtifactId::of(b"a"), port.map(u32::from)), port);
        let frame = asked.encode();
        let (head, body) = split(&frame);
        assert_eq!(Traced::decode(head, body), Ok(asked));
    }
}

fn answer_comes_back(answer: &Answer) -> bool {
    let frame = answer.encode();
    let (head, body) = split(&frame);
    Answer::decode(head, body).as_ref() == Ok(answer)
}

#[test]
fn golden_bytes_of_a_request_for_two_chunks() {
    let artifact = ArtifactId::from_array([0xab; 32]);
    let bytes = ask(Request::Chunks(artifact, vec![1, 300]), None).encode();
    let mut expected = vec![
        0x00, 0x00, 0x00, 0x29, // length
        0x00, 0x00, 0x00, 0x00, // CRC32C, filled in below
        0x1a, 0x27, // field 3: chunks
        0x0a, 0x20, // field 1: artifact id
    ];
    expected.extend([0xab; 32]);
    expected.extend([0x12, 0x03, 0x01, 0xac, 0x02]); // field 2: indices 1 and 300
    let crc = crc32c::crc32c(&expected[8..]);
    expected[4..8].copy_from_slice(&crc.to_be_bytes());
    assert_eq!(crc, 0xc7a6_c296);
    assert_eq!(bytes, expected);
    let fresh = ask(Request::FreshChunks(artifact, vec![1, 300]), None).encode();
    assert_eq!(fresh[FRAME_HEAD..FRAME_HEAD + 2], [0x1a, 0x29]);
    assert_eq!(fresh[fresh.len() - 2..], [0x18, 0x01]); // field 3: fresh
}

#[test]
fn golden_bytes_of_a_chunk_head() {
    assert_eq!(chunk_head(1, 1 << 20), [0, 0, 0, 1, 0, 0x10, 0, 0, 0xc4, 0x9b, 0xa0, 0xac]);
}

#[test]
fn every_kind_of_answer_comes_back() {
    let mut have = Bitmap::empty(100);
    have.set(3, true);
    let given = have.clone();
    let endpoint = "[2001:db8::7]:4780".parse().unwrap();
    let others = vec![Neighbour { node: PrivateKey::from_seed(1).node_id(), endpoint }];
    for answer in [
        Answer::Manifest { len: 5 },
        Answer::Have(HaveAnswer { have, uploads: 1, upload_slots: 16 }),
        Answer::Have(HaveAnswer { have: Bitmap::full(77), uploads: 0, upload_slots: 16 }),
        Answer::Chunks { len: 1 << 22 },
        Answer::Busy(Busy { retry_after: Duration::from_millis(150), others }),
        Answer::Given(given),
        Answer::Refused(Reason::Draining),
    ] {
        assert!(answer_comes_back(&answer), "{answer:?}");
    }
}

#[test]
fn bad_requests_are_refused() {
    let artifact = ArtifactId::of(b"a");
    let decode = |request: Request| {
        let frame = ask(request, None).encode();
        let (head, body) = split(&frame);
        Traced::decode(head, body).map(drop)
    };
    assert_eq!(decode(Request::Chunks(artifact, vec![])), Err(ProtocolError::Invalid("indices")));
    assert_eq!(decode(Request::Chunks(artifact, vec![1, 1])), Err(ProtocolError::Invalid("indices")));
    let many = decode(Request::Chunks(artifact, (0..65).collect()));
    assert_eq!(many, Err(ProtocolError::TooMany { field: "indices", limit: MAX_INDICES }));
    assert_eq!(decode(Request::Chunks(artifact, (0..64).collect())), Ok(()));
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_allocated() {
    assert!(body_len([0xff; FRAME_HEAD]).is_err());
    let frame = frame(&pb::PeerAnswer {
        answer: Some(pb::peer_answer::Answer::Manifest(pb::ManifestAnswer { len: u32::MAX })),
    });
    let (head, body) = split(&frame);
    assert!(matches!(Answer::decode(head, body), Err(ProtocolError::TooMany { .. })));
    let lie = pb::HaveAnswer { chunk_count: u32::MAX, ..Default::default() };
    assert!(decode_have(&lie).is_err());
}

proptest! {
    #[test]
    fn damaged_frames_never_decode_to_something_else(at in 0usize..60, flip in 1u8..=255) {
        let frame = ask(Request::Chunks(ArtifactId::of(b"a"), vec![1, 2, 3]), None).encode();
        let mut damaged = frame.to_vec();
        let at = at % damaged.len();
        damaged[at] ^= flip;
        let head: [u8; FRAME_HEAD] = damaged[..FRAME_HEAD].try_into().unwrap();
        let whole = body_len(head).is_ok_and(|len| len == damaged.len() - FRAME_HEAD);
        prop_assert!(!whole || Traced::decode(head, &damaged[FRAME_HEAD..]).is_err());
    }

    #[test]
    fn noise_is_an_error_not_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut head = [0; FRAME_HEAD];
        head[..4].copy_from_slice(&(body.len() as u32).to_be_bytes());
        head[4..].copy_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        let _ = Traced::decode(head, &body);
        let _ = Answer::decode(head, &body);
    }
}
