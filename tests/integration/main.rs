//! One binary for all tests that need more than one module.

#![expect(unreachable_pub, clippy::unwrap_used, reason = "a test binary has no outside, and a test ends by panicking")]

mod all_in_one;
mod audit;
mod bad_input;
mod caches;
mod compatibility;
mod configuration;
mod deploy;
mod discovery;
mod disk;
mod distribution;
mod doctor;
mod engine;
mod exec;
mod failures;
mod fleet;
mod harness;
mod herd;
mod hooks;
mod layers;
mod lora;
mod metrics;
mod network;
mod origin;
mod proxy;
mod push;
mod rotation;
mod serve;
mod supervision;
mod tracing;
mod transfer;
mod trust;
mod web;
