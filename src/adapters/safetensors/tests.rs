use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A file of this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn opened(bytes: &[u8]) -> Result<Weights, SafetensorsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter_model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Weights::open(&path, &Limits { file: 1 << 20, header: 1 << 16, tensors: 100 })
}

fn fault(bytes: &[u8]) -> Fault {
    match opened(bytes) {
        Err(SafetensorsError::Malformed { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

fn tensor(name: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn of(tensors: &[String], data: usize) -> Vec<u8> {
    file(&format!("{{{}}}", tensors.join(",")), data)
}

#[test]
fn tensors_that_tile_the_data_are_read_whatever_the_order_of_their_names() {
    let bytes = of(&[tensor("b", "[2]", 4, 12), tensor("a", "[1,1]", 0, 4), tensor("none", "[0]", 4, 4)], 12);
    let weights = opened(&bytes).unwrap();
    let names: Vec<&str> = weights.header().tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "none", "b"]);
    assert_eq!(weights.floats(&weights.header().tensors()[2], 2).unwrap(), [0.0, 0.0]);
}

#[test]
fn a_header_that_claims_two_to_the_63_bytes_is_refused_before_anything_is_allocated() {
    let mut bytes = file("{}", 0);
    bytes[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    assert_eq!(fault(&bytes), Fault::HeaderBeyondFile { claimed: 1 << 63, left: 2 });
    let large = file(&format!("{{}}{}", " ".repeat(1 << 16)), 0);
    assert!(matches!(fault(&large), Fault::HeaderTooLarge { .. }));
}

#[test]
fn tensors_that_overlap_leave_holes_or_do_not_end_with_the_file_are_refused() {
    assert_eq!(fault(&of(&[tensor("a", "[2]", 0, 8), tensor("b", "[2]", 4, 12)], 12)), Fault::Overlap("b".to_owned()));
    assert_eq!(fault(&of(&[tensor("a", "[1]", 0, 4), tensor("b", "[1]", 0, 4)], 4)), Fault::Overlap("b".to_owned()));
    let hole = fault(&of(&[tensor("a", "[1]", 0, 4), tensor("b", "[1]", 8, 12)], 12));
    assert_eq!(hole, Fault::Hole { before: "b".to_owned(), bytes: 4 });
    assert_eq!(fault(&of(&[tensor("a", "[1]", 0, 4)], 8)), Fault::End { tensors: 4, data: 8 });
    assert_eq!(fault(&of(&[tensor("a", "[3]", 0, 12)], 8)), Fault::End { tensors: 12, data: 8 });
}

#[test]
fn shapes_that_overflow_or_do_not_fit_their_bytes_are_refused() {
    let shape = format!("[{0},{0},{0}]", 1u64 << 32);
    assert_eq!(fault(&of(&[tensor("a", &shape, 0, 0)], 0)), Fault::ShapeOverflow("a".to_owned()));
    assert!(matches!(fault(&of(&[tensor("a", "[3]", 0, 8)], 8)), Fault::Size { needed: 12, given: 8, .. }));
    assert_eq!(fault(&of(&[tensor("a", "[1]", 8, 4)], 8)), Fault::Backwards("a".to_owned()));
    for shape in ["[NaN]", "[-1]", "[1.5]", "[1,1,1,1,1,1,1,1,1]", "7", r#"["1"]"#] {
        assert!(matches!(fault(&of(&[tensor("a", shape, 0, 4)], 4)), Fault::Header(_)), "{shape}");
    }
}

#[test]
fn headers_that_say_two_things_are_refused() {
    let twice = of(&[tensor("a", "[1]", 0, 4), tensor("a", "[1]", 4, 8)], 8);
    assert!(matches!(fault(&twice), Fault::Header(text) if text.contains("`a` occurs twice")));
    let notes = file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, 0);
    assert!(matches!(fault(&notes), Fault::Header(text) if text.contains("twice")));
    let field = file(r#"{"a":{"dtype":"F32","dtype":"F16","shape":[0],"data_offsets":[0,0]}}"#, 0);
    assert!(matches!(fault(&field), Fault::Header(_)));
    let unknown = file(r#"{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"x":1}}"#, 0);
    assert!(matches!(fault(&unknown), Fault::Header(_)));
}

#[test]
fn what_is_no_safetensors_file_at_all_is_told_apart() {
    assert_eq!(fault(b"PK"), Fault::TooShort(2));
    assert_eq!(fault(&file(" {}", 0)), Fault::HeaderStart);
    assert_eq!(fault(&file("", 0)), Fault::HeaderStart);
    assert!(matches!(fault(b"\x80\x02}q\x00X\x04\x00\x00\x00"), Fault::HeaderBeyondFile { .. }));
    let deep = format!(r#"{{"a":{}}}"#, "[".repeat(10_000));
    assert!(matches!(fault(&file(&deep, 0)), Fault::Header(_)));
    assert!(matches!(fault(&file("{}", 2 << 20)), Fault::FileTooLarge { .. }));
}

#[test]
fn names_that_are_long_or_have_control_characters_are_refused() {
    for name in ["", r"a\u0000b", r"\u001b[2J", &"n".repeat(513)] {
        let fault = fault(&of(&[tensor(name, "[1]", 0, 4)], 4));
        assert!(matches!(&fault, Fault::Name(_)) && !fault.to_string().contains('\x1b'), "{fault}");
    }
}

#[test]
fn a_link_or_a_directory_in_the_files_place_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    std::fs::write(&real, file("{}", 0)).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(matches!(Weights::open(&link, &Limits::ADAPTER), Err(SafetensorsError::Io { .. })));
    assert!(Weights::open_following(&link, &Limits::ADAPTER).is_ok());
    assert!(matches!(Weights::open(dir.path(), &Limits::ADAPTER), Err(SafetensorsError::NotAFile(_))));
}

#[test]
fn what_is_read_at_once_is_bounded() {
    let weights = opened(&of(&[tensor("a", "[4]", 0, 16)], 16)).unwrap();
    let error = weights.floats(&weights.header().tensors()[0], 3).unwrap_err();
    assert!(matches!(error, SafetensorsError::TooLarge { bytes: 16, limit: 12, .. }));
}

/// Tensors of the files that the real library wrote.
#[test]
fn files_of_the_real_library_are_read_and_written_back_byte_for_byte() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/adapters");
    for name in ["plain/adapter_model", "dora/adapter_model", "base/model", "exact/dora"] {
        let path = root.join(format!("{name}.safetensors"));
        let weights = Weights::open(&path, &Limits::ADAPTER).unwrap();
        let copy = |tensor| Content::Copy(&weights, tensor);
        let tensors: Vec<Outgoing<'_>> = (weights.header().tensors().iter())
            .map(|t| Outgoing { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), content: copy(t) })
            .collect();
        let mut out = Vec::new();
        write(&mut out, tensors, weights.header().metadata()).unwrap();
        let (ours, theirs) = (opened(&out).unwrap(), std::fs::read(&path).unwrap());
        assert_eq!(ours.header().tensors(), weights.header().tensors(), "{name}");
        assert_eq!(out[ours.header().data() as usize..], theirs[weights.header().data() as usize..], "{name}");
    }
}

fn arbitrary_header() -> impl Strategy<Value = String> {
    let number = prop_oneof![4 => 0u64..40, 1 => any::<u64>()];
    let dtype = prop::sample::select(vec!["F32", "F16", "BF16", "F4", "U8", "X"]);
    let shape = prop::collection::vec(number.clone(), 0..4);
    let one = (prop::sample::select(vec!["a", "b", "c"]), dtype, shape, number.clone(), number);
    prop::collection::vec(one, 0..4).prop_map(|tensors| {
        let text = |(name, dtype, shape, begin, end): (&str, &str, Vec<u64>, u64, u64)| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        };
        format!("{{{}}}", tensors.into_iter().map(text).collect::<Vec<_>>().join(","))
    })
}

fn check_invariants(bytes: &[u8]) {
    let Ok(weights) = opened(bytes) else { return };
    let (header, mut end) = (weights.header(), 0);
    for tensor in header.tensors() {
        assert_eq!(tensor.range.start, end);
        end = tensor.range.end;
        let elements: u64 = tensor.shape.iter().product();
        assert_eq!(elements * tensor.dtype.bits(), tensor.len() * 8);
    }
    assert_eq!(header.data() + end, bytes.len() as u64);
}

proptest! {
    #[test]
    fn accepted_files_are_tiled_by_their_tensors(header in arbitrary_header(), data in 0usize..160) {
        check_invariants(&file(&header, data));
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_invariants(&bytes);
        check_invariants(&file(&String::from_utf8_lossy(&bytes), 8));
    }

    #[test]
    fn a_good_file_with_one_byte_changed_is_still_tiled_or_refused(at in 0usize..150, byte: u8) {
        let mut bytes = of(&[tensor("a", "[2]", 0, 8), tensor("b", "[1]", 8, 12)], 12);
        let at = at % bytes.len();
        bytes[at] = byte;
        check_invariants(&bytes);
    }

    #[test]
    fn what_is_written_is_read_back_and_does_not_depend_on_the_order(
        shapes in prop::collection::btree_map("[a-z.]{1,9}", (0u64..5, 1u64..5), 0..6),
        halves: bool,
    ) {
        let dtype = |rows: u64| if halves && rows.is_multiple_of(2) { Float::Bf16 } else { Float::F32 };
        let made = || shapes.iter().map(|(name, (rows, columns))| {
            let values: Vec<f32> = (0..rows * columns).map(|n| n as f32).collect();
            Outgoing {
                name: name.clone(),
                dtype: dtype(*rows).dtype(),
                shape: vec![*rows, *columns],
                content: Content::Bytes(dtype(*rows).encode(&values)),
            }
        });
        let (mut forward, mut backward) = (Vec::new(), Vec::new());
        let notes = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&mut forward, made().collect(), &notes).unwrap();
        write(&mut backward, made().rev().collect(), &notes).unwrap();
        prop_assert_eq!(&forward, &backward);
        let weights = opened(&forward).unwrap();
        prop_assert_eq!(weights.header().data() % 8, 0);
        prop_assert_eq!(weights.header().metadata(), &notes);
        prop_assert_eq!(weights.header().tensors().len(), shapes.len());
        for tensor in weights.header().tensors() {
            let values = weights.floats(tensor, 100).unwrap();
            prop_assert!(values.iter().enumerate().all(|(n, value)| *value == n as f32));
        }
    }
}
