//! One binary for all tests that need more than one module.

#![expect(unreachable_pub, reason = "a test binary has no outside")]

mod deploy;
mod failures;
mod harness;
mod layers;
mod transfer;
mod trust;
