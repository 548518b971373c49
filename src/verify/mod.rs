//! Room under construction.
pub mod verdict;
