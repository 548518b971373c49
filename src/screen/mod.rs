//! Room under construction.
pub mod structure;
