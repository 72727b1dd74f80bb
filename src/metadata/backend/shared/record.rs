//! The bytes in the store. Each record carries its CRC32C: the store is another program's memory and disk.

use super::StoreError;
use crate::digest::{ArtifactId, DIGEST_LEN};
use crate::identity::NodeId;
use crate::metadata::backend::{frame, unframe};
use crate::metadata::registry::{Change, Decision, Version};
use crate::protocol::metadata::{Announcement, Epoch, Held, ServerEpoch, Withdrawal};

/// A larger announcement is not repeated in the log: servers read the node's records instead. In bytes; with the length of
/// the log it bounds what the log takes of the store's memory.
const MAX_ENTRY: usize = 16 * 1024;

const ANNOUNCE: u8 = b'a';
const WITHDRAW: u8 = b'w';
const FORGET: u8 = b'f';
const LOAD: u8 = b'l';

/// What a server is to do when it comes to an entry of the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Apply(Change),
    /// Read the node's records.
    Load,
}

/// A node as the store has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) version: Version,
    /// Milliseconds of the store's clock.
    pub(super) renewed_ms: u64,
    /// The server epoch to which it announced in full.
    pub(super) complete: Option<ServerEpoch>,
    pub(super) node: Announcement,
}

/// The node's record as the commit script takes it: it puts version and time before.
pub(super) fn record(decision: &Decision, epoch: ServerEpoch) -> Vec<u8> {
    let Some(node) = &decision.node else { return Vec::new() };
    let complete = if decision.complete { epoch.0 } else { 0 };
    frame(&[complete.to_be_bytes().as_slice(), &node.encode()].concat())
}

pub(super) fn read_record(id: NodeId, bytes: &[u8]) -> Result<Record, StoreError> {
    let read = || {
        let (version, rest) = bytes.split_at_checked(16)?;
        let (renewed, framed) = rest.split_at_checked(16)?;
        let (complete, node) = unframe(framed)?.split_at_checked(8)?;
        let complete = u64::from_be_bytes(complete.try_into().ok()?);
        let node = Announcement::decode(node).ok().filter(|node| node.node == id)?;
        Some(Record {
            version: read_version(version)?,
            renewed_ms: number(renewed)?,
            complete: (complete != 0).then_some(ServerEpoch(complete)),
            node,
        })
    };
    read().ok_or(StoreError::Damaged("a node's record"))
}

pub(super) fn read_version(text: &[u8]) -> Option<Version> {
    number(text).map(Version)
}

pub(super) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

pub(super) fn held(held: &Held) -> Vec<u8> {
    frame(&held.encode())
}

pub(super) fn read_held(artifact: &[u8], bytes: &[u8]) -> Result<Held, StoreError> {
    let held = unframe(bytes).and_then(|bytes| Held::decode(bytes).ok());
    held.filter(|held| held.artifact.artifact.as_bytes() == artifact).ok_or(StoreError::Damaged("a holding"))
}

pub(super) fn entry(change: &Change) -> Vec<u8> {
    let body = match change {
        Change::Announce(told) => [&[ANNOUNCE], told.encode().as_slice()].concat(),
        Change::Withdraw(told) => {
            let Withdrawal { epoch, sequence, artifact, .. } = told;
            let numbers = [epoch.0.to_be_bytes(), sequence.to_be_bytes()].concat();
            [&[WITHDRAW], numbers.as_slice(), artifact.as_bytes()].concat()
        }
        Change::Forget(_) => vec![FORGET],
    };
    frame(if body.len() > MAX_ENTRY { &[LOAD] } else { &body })
}

pub(super) fn read_entry(node: NodeId, bytes: &[u8]) -> Result<Entry, StoreError> {
    let read = || {
        let (tag, body) = unframe(bytes)?.split_first()?;
        Some(match *tag {
            ANNOUNCE => {
                Entry::Apply(Change::Announce(Announcement::decode(body).ok().filter(|told| told.node == node)?))
            }
            WITHDRAW => Entry::Apply(Change::Withdraw(read_withdrawal(node, body)?)),
            FORGET => Entry::Apply(Change::Forget(node)),
            LOAD => Entry::Load,
            _ => return None,
        })
    };
    read().ok_or(StoreError::Damaged("an entry of the log"))
}

fn read_withdrawal(node: NodeId, body: &[u8]) -> Option<Withdrawal> {
    let (epoch, rest) = body.split_at_checked(8)?;
    let (sequence, artifact) = rest.split_at_checked(8)?;
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    let artifact = ArtifactId::try_from(artifact).ok().filter(|_| artifact.len() == DIGEST_LEN)?;
    Some(Withdrawal { node, epoch: Epoch(number(epoch)?), sequence: number(sequence)?, artifact })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::registry::tests::{announcement, held as holding, node};
    use crate::protocol::metadata::NodeState;

    #[test]
    fn entries_round_trip_and_large_ones_only_say_that_there_is_something() {
        let small = Announcement { held: vec![holding(1, 1, 2, 4)], ..announcement(1, 2, 3, NodeState::Ready) };
        let artifact = holding(1, 1, 4, 4).artifact.artifact;
        let gone = Withdrawal { node: node(1), epoch: Epoch(2), sequence: 9, artifact };
        for change in [Change::Announce(small.clone()), Change::Withdraw(gone), Change::Forget(node(1))] {
            assert_eq!(read_entry(node(1), &entry(&change)).unwrap(), Entry::Apply(change));
        }
        let large = Announcement { held: (0..200).map(|n| holding(n, n, 4, 4)).collect(), ..small };
        assert_eq!(read_entry(node(1), &entry(&Change::Announce(large))).unwrap(), Entry::Load);
    }

    #[test]
    fn what_is_damaged_or_of_another_node_is_refused() {
        let change = Change::Announce(announcement(1, 2, 3, NodeState::Ready));
        let good = entry(&change);
        assert!(read_entry(node(2), &good).is_err());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read_entry(node(1), &bad).is_err(), "byte {at}");
        }
        let held = held(&holding(1, 1, 4, 4));
        assert!(read_held(&[1; 32], &held).is_ok());
        assert!(read_held(&[2; 32], &held).is_err());
        assert!(read_held(&[1; 32], &held[..held.len() - 1]).is_err());
    }

    #[test]
    fn a_record_says_to_which_server_epoch_the_node_is_complete() {
        let node = Announcement { full: false, ..announcement(1, 2, 3, NodeState::Draining) };
        for complete in [false, true] {
            let decision = Decision { known: Version(1), node: Some(node.clone()), complete, replaces: false };
            let bytes = [b"00000000000000070000000000000042".as_slice(), &record(&decision, ServerEpoch(5))].concat();
            let read = read_record(node.node, &bytes).unwrap();
            assert_eq!((read.version, read.renewed_ms, &read.node), (Version(7), 42, &node));
            assert_eq!(read.complete, complete.then_some(ServerEpoch(5)));
        }
    }
}
