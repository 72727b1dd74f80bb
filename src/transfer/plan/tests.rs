//! Sentences about the plan: decisions one by one, random histories, and whole fleets in the simulation.

mod decisions;
mod fleet;
mod histories;

use std::time::{Duration, Instant};

use crate::artifact::Bitmap;
use crate::identity::{NodeId, PrivateKey};

use super::*;

fn node(number: usize) -> NodeId {
    PrivateKey::from_seed(number as u8).node_id()
}
