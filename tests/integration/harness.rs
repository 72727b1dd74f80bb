//! An in-process cluster: a metadata server and agents on loopback, with keys of their own, in temporary directories.

pub mod cluster;
pub mod process;
pub mod tree;
