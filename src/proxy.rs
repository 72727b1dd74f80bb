//! The serving proxy: who may use it, how much, and which adapters are paused.

pub mod auth;
pub mod limits;
pub mod pause;
