//! An in-process cluster: a metadata server and agents on loopback, with keys of their own, in temporary directories;
//! and an engine that needs no Python.

pub mod cluster;
pub mod disk;
pub mod engine;
pub mod front;
pub mod gpu;
pub mod http;
pub mod lan;
pub mod lines;
pub mod ports;
pub mod process;
pub mod program;
pub mod relay;
pub mod served;
pub mod tree;
pub mod upstream;
pub mod vllm;
