//! Shapes against the files that define the messages.

use std::collections::BTreeMap;

use super::*;
use crate::protocol::{model_express, pb as agent};

#[derive(Debug)]
struct Field {
    tag: u32,
    name: String,
    of: String,
    repeats: bool,
}

/// What a file defines: messages, and those that its calls take and return. Every definition of ours begins a line.
#[derive(Debug, Default)]
struct Defined {
    messages: BTreeMap<String, Vec<Field>>,
    told: Vec<String>,
}

fn defined(files: &[&str]) -> Defined {
    let mut defined = Defined::default();
    let mut message = String::new();
    for line in files.iter().flat_map(|file| file.lines()).map(str::trim).filter(|line| !line.starts_with("//")) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.trim_end_matches(['{', '}', ' ']).to_owned();
            assert!(defined.messages.insert(message.clone(), Vec::new()).is_none(), "{message} twice");
        } else if let Some(call) = line.strip_prefix("rpc ") {
            let sides = call.split(['(', ')']).skip(1).step_by(2);
            defined.told.extend(sides.map(|side| side.trim_start_matches("stream ").to_owned()));
        } else if let (Some(field), Some(fields)) = (field(line), defined.messages.get_mut(&message)) {
            fields.push(field);
        } else if line.starts_with("enum ") {
            message.clear();
        }
    }
    defined
}

fn field(line: &str) -> Option<Field> {
    let (front, tag) = line.split_once(" = ")?;
    let tag = tag.split([';', ' ']).next()?.parse().ok()?;
    let (of, name) = front.rsplit_once(' ')?;
    let repeats = of.starts_with("repeated ") || of.starts_with("map<");
    let of = of.trim_start_matches("repeated ").trim_start_matches("optional ").to_owned();
    Some(Field { tag, name: name.to_owned(), of, repeats })
}

/// Repeated fields of `message` and of all that is in it, each of which `shape` must have.
fn check_shape(defined: &Defined, message: &str, shape: &[Repeated], at: &str) -> usize {
    let Some(fields) = defined.messages.get(message) else { return 0 };
    let mut count = 0;
    for Field { tag, name, of, repeats } in fields {
        let at = format!("{at}.{name}");
        let known = shape.iter().find(|known| known.tag == *tag);
        assert!(!repeats || known.is_some(), "{at} = {tag} may repeat, and has no shape");
        assert!(known.is_none_or(|known| known.name == name), "{at} = {tag} is not {}", known.unwrap().name);
        count += usize::from(*repeats) + check_shape(defined, of, known.map_or(&[], |known| known.inside), &at);
    }
    count
}

macro_rules! shapes {
    ($($pb:ident: $($message:ident)+;)+) => {
        BTreeMap::from([$($((stringify!($message), $pb::$message::SHAPE)),+),+])
    };
}

fn check_all(files: &[&str], shapes: &BTreeMap<&str, &'static [Repeated]>) {
    let defined = defined(files);
    assert!(!defined.told.is_empty());
    let count = |name: &String| {
        let shape = shapes.get(name.as_str()).unwrap_or_else(|| panic!("{name}: add it to this test"));
        check_shape(&defined, name, shape, name)
    };
    assert!(defined.told.iter().map(count).sum::<usize>() >= 2);
}

#[test]
fn every_field_of_the_local_api_that_may_repeat_has_a_limit() {
    let shapes = shapes! {
        agent: PublishRequest PublishEvent PushRequest PushReply WarmRequest WarmEvent FindRequest FindReply NearbyRequest
            NearbyReply ReadChunksRequest ChunkData StatusRequest StatusReply ConfigurationRequest ConfigurationReply
            TrustKnown TrustDocuments ListArtifactsRequest ListArtifactsReply InspectRequest InspectReply EvictRequest
            EvictReply VerifyRequest VerifyEvent GcRequest GcReply StartReport StartReported ServingReport
            ServingReported FleetRequest FleetReply AuditRequest AuditReply ExportRequest ArchiveBytes ImportReply
            OriginPushRequest OriginPushEvent OriginPullRequest OriginListRequest OriginListReply OriginHasRequest
            OriginHasReply;
    };
    check_all(&[include_str!("../../../../proto/agent.proto")], &shapes);
}

#[test]
fn every_field_of_the_directory_that_may_repeat_has_a_limit() {
    let shapes = shapes! {
        pb: AnnounceRequest AnnounceReply WithdrawRequest WithdrawReply LookupRequest LookupReply WatchRequest WatchEvent
            ListRequest ListReply TrustKnown TrustDocuments NodeReport ReportReply FleetRequest FleetReply;
    };
    check_all(&[include_str!("../../../../proto/metadata.proto")], &shapes);
}

#[test]
fn every_field_that_weight_clients_may_repeat_has_a_limit() {
    use model_express::pb as weights;
    let shapes = shapes! {
        weights: PublishMetadataRequest ListSourcesRequest GetMetadataRequest UpdateStatusRequest PublishMetadataResponse
            ListSourcesResponse GetMetadataResponse UpdateStatusResponse;
    };
    check_all(&[include_str!("../../../../proto/model_express.proto")], &shapes);
}
